# Finds the ONNX Runtime C and C++ API headers and sets ORT_HEADERS_DIR.
#
# The onnxruntime wheel ships none. In this order:
#   1. ONNXRUNTIME_INCLUDE_DIR (CMake define or environment), the folder of onnxruntime_cxx_api.h;
#   2. the PyPI wheel that carries the official 1.17.0 headers (MIT), checked by sha256;
#   3. the official ONNX Runtime release archive.
# ORT_HEADERS_SOURCE = auto | pypi | release limits the choice to 2 or 3.
set(ORT_HEADERS_SOURCE "auto" CACHE STRING "auto, pypi or release")
set(ONNXRUNTIME_INCLUDE_DIR "" CACHE PATH "Folder that holds onnxruntime_cxx_api.h")
if(NOT ONNXRUNTIME_INCLUDE_DIR AND DEFINED ENV{ONNXRUNTIME_INCLUDE_DIR})
  set(ONNXRUNTIME_INCLUDE_DIR "$ENV{ONNXRUNTIME_INCLUDE_DIR}")
endif()

set(_ort_wheel "amd_quark-0.13-py3-none-any.whl")
set(_ort_wheel_sha256 "3b3e58a4cbbcff20d27815b641aa4de4d698efde3c782306cb4a6a05bcf55c8c")
set(_ort_release "https://github.com/microsoft/onnxruntime/releases/download/v1.17.0/onnxruntime-linux-x64-1.17.0.tgz")

function(_ort_headers_from_pypi out)
  set(dir "${CMAKE_BINARY_DIR}/ort-headers")
  set(include "${dir}/quark/onnx/operators/custom_ops/include/onnxruntime-1.17.0/onnxruntime/core/session")
  if(NOT EXISTS "${include}/onnxruntime_cxx_api.h")
    file(MAKE_DIRECTORY "${dir}")
    if(NOT EXISTS "${dir}/${_ort_wheel}")
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check download --quiet --no-deps
                --no-cache-dir --only-binary=:all: --python-version 3.12 -d "${dir}" amd-quark==0.13
        RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
      if(NOT status EQUAL 0)
        message(STATUS "pip could not download the ONNX Runtime headers: ${output}")
        return()
      endif()
    endif()
    file(SHA256 "${dir}/${_ort_wheel}" found)
    if(NOT found STREQUAL _ort_wheel_sha256)
      file(REMOVE "${dir}/${_ort_wheel}")
      message(FATAL_ERROR "${_ort_wheel}: sha256 is ${found}, expected ${_ort_wheel_sha256}")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${dir}/${_ort_wheel}" DESTINATION "${dir}"
         PATTERNS "*/onnxruntime-1.17.0/*")
  endif()
  set(${out} "${include}" PARENT_SCOPE)
endfunction()

set(ORT_HEADERS_DIR "")
if(ONNXRUNTIME_INCLUDE_DIR)
  find_path(_ort_found onnxruntime_cxx_api.h
    PATHS "${ONNXRUNTIME_INCLUDE_DIR}"
    PATH_SUFFIXES onnxruntime include/onnxruntime include/onnxruntime/core/session
                  onnxruntime/core/session core/session
    NO_DEFAULT_PATH NO_CACHE)
  if(_ort_found)
    set(ORT_HEADERS_DIR "${_ort_found}")
  endif()
else()
  if(NOT ORT_HEADERS_SOURCE STREQUAL "release")
    _ort_headers_from_pypi(ORT_HEADERS_DIR)
  endif()
  if(NOT ORT_HEADERS_DIR AND NOT ORT_HEADERS_SOURCE STREQUAL "pypi")
    include(FetchContent)
    FetchContent_Declare(ort_release URL "${_ort_release}")
    FetchContent_MakeAvailable(ort_release)
    set(ORT_HEADERS_DIR "${ort_release_SOURCE_DIR}/include")
  endif()
endif()
if(NOT EXISTS "${ORT_HEADERS_DIR}/onnxruntime_cxx_api.h")
  message(FATAL_ERROR "ONNX Runtime headers not found (looked in '${ORT_HEADERS_DIR}' for "
    "onnxruntime_cxx_api.h). Set ONNXRUNTIME_INCLUDE_DIR to the folder that holds it.")
endif()
message(STATUS "ONNX Runtime headers: ${ORT_HEADERS_DIR}")
