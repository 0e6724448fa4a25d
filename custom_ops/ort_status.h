// Errors between ONNX Runtime's C API and C++ exceptions.
#pragma once

#include <onnxruntime_c_api.h>

#include <exception>
#include <new>
#include <string>

#include "check_node.h"
#include "run.h"

namespace onnx_ternary {

// Carries an OrtStatus through C++ code of ours; never crosses the C boundary.
class StatusError : public std::exception {
 public:
  StatusError(const OrtApi& api, OrtStatus* status) : code_(api.GetErrorCode(status)) {
    try {
      message_ = api.GetErrorMessage(status);
    } catch (const std::exception&) {
    }
    api.ReleaseStatus(status);
  }
  const char* what() const noexcept override { return message_.c_str(); }
  OrtErrorCode code() const { return code_; }

 private:
  OrtErrorCode code_;
  std::string message_;
};

inline void Check(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) throw StatusError(api, status);
}

// The status of the exception being handled.
inline OrtStatus* CurrentStatus(const OrtApi& api) noexcept {
  try {
    throw;
  } catch (const StatusError& error) {
    return api.CreateStatus(error.code(), error.what());
  } catch (const IndexError& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const RunError& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "onnx_ternary: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "onnx_ternary: unknown C++ exception");
  }
}

// The status of what `body` throws; null where it throws nothing.
template <class Body>
OrtStatus* StatusOf(const OrtApi& api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return CurrentStatus(api);
  }
}

}  // namespace onnx_ternary
