# Finds the ONNX Runtime C and C++ API headers and sets ORT_HEADERS_DIR.
#
# The onnxruntime wheel ships none. In this order:
#   1. ONNXRUNTIME_INCLUDE_DIR (CMake define or environment), the folder of onnxruntime_cxx_api.h;
#   2. the PyPI wheel that carries the official 1.17.0 headers (MIT), checked by sha256;
#   3. the official ONNX Runtime release archive, whose headers are checked by sha256.
# ORT_HEADERS_SOURCE = auto | pypi | release limits the choice to 2 or 3. Without a network both
# fail within seconds.
set(ORT_HEADERS_SOURCE "auto" CACHE STRING "auto, pypi or release")
set(ONNXRUNTIME_INCLUDE_DIR "" CACHE PATH "Folder that holds onnxruntime_cxx_api.h")
if(NOT ONNXRUNTIME_INCLUDE_DIR AND DEFINED ENV{ONNXRUNTIME_INCLUDE_DIR})
  set(ONNXRUNTIME_INCLUDE_DIR "$ENV{ONNXRUNTIME_INCLUDE_DIR}")
endif()

set(_ort_wheel "amd_quark-0.13-py3-none-any.whl")
set(_ort_wheel_sha256 "3b3e58a4cbbcff20d27815b641aa4de4d698efde3c782306cb4a6a05bcf55c8c")
# Of what is compiled, in the wheel; the archive has to hold the same bytes.
set(_ort_header_sha256
  onnxruntime_c_api.h 50dffd48d32043ebc05558bef52551879a3ee919796734458dc60ae83e517c95
  onnxruntime_cxx_api.h 973c083d368d6c474864c9336fee87ea956299923f73135c86a3ba624efa5bf9
  onnxruntime_cxx_inline.h 547edd83fa546a52bd3d583b25f342955d0fa34bb30bc9415cc6a8b388dea1af
  onnxruntime_float16.h ad51ec52cb0601dd0907d346ff7230785dd1d78b750dc6155ad1821e0a915fb9)
set(_ort_release "https://github.com/microsoft/onnxruntime/releases/download/v1.17.0/onnxruntime-linux-x64-1.17.0.tgz")

function(_ort_headers_from_pypi out)
  set(dir "${CMAKE_BINARY_DIR}/ort-headers")
  set(include "${dir}/quark/onnx/operators/custom_ops/include/onnxruntime-1.17.0/onnxruntime/core/session")
  if(NOT EXISTS "${include}/onnxruntime_cxx_api.h")
    file(MAKE_DIRECTORY "${dir}")
    if(NOT EXISTS "${dir}/${_ort_wheel}")
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check --retries 1 --timeout 5
                download --quiet --no-deps
                --no-cache-dir --only-binary=:all: --python-version 3.12 -d "${dir}" amd-quark==0.13
        RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
      if(NOT status EQUAL 0)
        string(STRIP "${output}" output)
        string(REGEX REPLACE ".*\n" "" output "${output}")
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

function(_ort_headers_from_release out)
  set(dir "${CMAKE_BINARY_DIR}/ort-headers")
  set(archive "${dir}/release.tgz")
  set(include "${dir}/onnxruntime-linux-x64-1.17.0/include")
  if(NOT EXISTS "${include}/onnxruntime_cxx_api.h")
    # One byte first: a limit for all of the archive would be one for slow networks too.
    file(DOWNLOAD "${_ort_release}" "${archive}" RANGE_START 0 RANGE_END 0 TIMEOUT 10 STATUS status)
    list(GET status 0 code)
    if(code EQUAL 0)
      file(DOWNLOAD "${_ort_release}" "${archive}" INACTIVITY_TIMEOUT 30 STATUS status)
      list(GET status 0 code)
    endif()
    if(NOT code EQUAL 0)
      file(REMOVE "${archive}")
      message(STATUS "${_ort_release} could not be downloaded: ${status}")
      return()
    endif()
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${dir}" PATTERNS "*/include/*")
  endif()
  set(expected ${_ort_header_sha256})
  while(expected)
    list(POP_FRONT expected header sha256)
    file(SHA256 "${include}/${header}" found)
    if(NOT found STREQUAL sha256)
      file(REMOVE_RECURSE "${dir}/onnxruntime-linux-x64-1.17.0" "${archive}")
      message(FATAL_ERROR " ${_ort_release}: sha256 of ${header} is ${found}, expected ${sha256}")
    endif()
  endwhile()
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
    _ort_headers_from_release(ORT_HEADERS_DIR)
  endif()
endif()
if(NOT EXISTS "${ORT_HEADERS_DIR}/onnxruntime_cxx_api.h")
  # The leading space keeps the message on one line.
  if(ONNXRUNTIME_INCLUDE_DIR)
    message(FATAL_ERROR " There is no onnxruntime_cxx_api.h in ONNXRUNTIME_INCLUDE_DIR=${ONNXRUNTIME_INCLUDE_DIR}; set ONNXRUNTIME_INCLUDE_DIR to the folder that holds it.")
  endif()
  message(FATAL_ERROR " The ONNX Runtime headers could not be downloaded; set ONNXRUNTIME_INCLUDE_DIR, as a CMake define or in the environment, to the folder that holds onnxruntime_cxx_api.h.")
endif()
message(STATUS "ONNX Runtime headers: ${ORT_HEADERS_DIR}")
