# Finds TensorRT's headers: TENSORRT_INCLUDE_DIR or TENSORRT_ROOT, the system's, or those that NVIDIA
# licenses under Apache-2.0 in the wheel of kernel-lens, which is downloaded once. There is nothing to
# link. NvInferRuntime.h includes the CUDA runtime's header. Sets MOE_EXPORT_TENSORRT_INCLUDES, or
# MOE_EXPORT_TENSORRT_MISSING to what is missing.

set(KERNEL_LENS kernel-lens==2.0.1)
set(KERNEL_LENS_SHA256 07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0)

# Headers from the wheel, kept in the user's cache.
function(download_tensorrt_headers include missing)
  set(${include} "" PARENT_SCOPE)
  if(DEFINED ENV{XDG_CACHE_HOME})
    set(cache $ENV{XDG_CACHE_HOME}/moe-export)
  else()
    set(cache $ENV{HOME}/.cache/moe-export)
  endif()
  set(folder ${cache}/${KERNEL_LENS_SHA256})
  set(headers ${folder}/kernel_lens/include/tensorrt)
  if(EXISTS ${headers}/NvInferRuntime.h)
    set(${include} ${headers} PARENT_SCOPE)
    return()
  endif()
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(NOT Python3_FOUND)
    set(${missing} "no Python to download ${KERNEL_LENS} with" PARENT_SCOPE)
    return()
  endif()
  file(MAKE_DIRECTORY ${folder})
  message(STATUS "moe-export: downloading TensorRT's headers (${KERNEL_LENS}) to ${cache}")
  file(WRITE ${folder}/requirements.txt "${KERNEL_LENS} --hash=sha256:${KERNEL_LENS_SHA256}\n")
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --no-deps
      --only-binary=:all: --require-hashes --requirement ${folder}/requirements.txt --dest ${folder}
    RESULT_VARIABLE failed ERROR_VARIABLE output TIMEOUT 300)
  file(GLOB wheel ${folder}/*.whl)
  if(failed OR NOT wheel)
    string(STRIP "${output}" output)
    set(${missing} "pip could not download ${KERNEL_LENS}: ${output}" PARENT_SCOPE)
    return()
  endif()
  file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${folder} PATTERNS "kernel_lens/include/tensorrt/*")
  file(REMOVE ${wheel})
  set(${include} ${headers} PARENT_SCOPE)
endfunction()

set(MOE_EXPORT_TENSORRT_MISSING "")
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} $ENV{TENSORRT_INCLUDE_DIR} PATH_SUFFIXES include)
set(include ${TENSORRT_INCLUDE_DIR})
if(NOT include)
  download_tensorrt_headers(include MOE_EXPORT_TENSORRT_MISSING)
endif()
if(NOT MOE_EXPORT_CUDA_INCLUDE_DIR)  # no GPU kernels are built here, only tests
  find_package(CUDAToolkit QUIET)
  find_path(MOE_EXPORT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
endif()
if(NOT MOE_EXPORT_CUDA_INCLUDE_DIR)
  set(MOE_EXPORT_TENSORRT_MISSING "the CUDA toolkit's cuda_runtime_api.h was not found")
endif()
set(MOE_EXPORT_TENSORRT_INCLUDES ${include} ${MOE_EXPORT_CUDA_INCLUDE_DIR})
