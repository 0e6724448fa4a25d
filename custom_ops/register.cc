#include <onnxruntime_c_api.h>

#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "c_api.h"
#include "op.h"

namespace onnx_ternary {
namespace {

// The op's domain in one loaded ONNX Runtime. Never released: sessions keep pointers to it.
struct Registration {
  const OrtApi* api;
  OrtCustomOpDomain* domain;
  TypedOps products;
  TypedOps gathers;
};

OrtStatus* FindDomain(const OrtApi* api, OrtCustomOpDomain** domain) {
  static std::mutex mutex;
  static auto* registrations = new std::vector<std::unique_ptr<Registration>>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& registration : *registrations) {
    if (registration->api == api) {
      *domain = registration->domain;
      return nullptr;
    }
  }
  auto registration = std::make_unique<Registration>(
      Registration{api, nullptr, MakeMatMulOps(api), MakeGatherOps(api)});
  registrations->reserve(registrations->size() + 1);
  if (OrtStatus* status = api->CreateCustomOpDomain("onnx_ternary", &registration->domain)) {
    return status;
  }
  for (const TypedOps* ops : {&registration->products, &registration->gathers}) {
    for (const auto& op : *ops) {
      if (OrtStatus* status = api->CustomOpDomain_Add(registration->domain, op.get())) {
        api->ReleaseCustomOpDomain(registration->domain);
        return status;
      }
    }
  }
  *domain = registration->domain;
  registrations->push_back(std::move(registration));
  return nullptr;
}

}  // namespace
}  // namespace onnx_ternary

extern "C" OTN_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    const OrtApi* oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;
    try {
      const std::string message =
          std::string("onnx-ternary needs onnxruntime 1.17 or newer, this is ") +
          base->GetVersionString() + "; upgrade with 'pip install -U onnxruntime'.";
      return oldest->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
    } catch (const std::exception& error) {
      return oldest->CreateStatus(ORT_FAIL, error.what());
    }
  }
  try {
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = onnx_ternary::FindDomain(api, &domain)) return status;
    return api->AddCustomOpDomain(options, domain);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
