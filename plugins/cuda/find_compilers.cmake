# Finds what compiles GPU kernels: nvcc, and triton, which is fetched into a cache where the machine
# lacks it. Sets MOE_EXPORT_NVCC, MOE_EXPORT_CUDA_INCLUDE_DIR, MOE_EXPORT_TRITON_FOLDER and
# MOE_EXPORT_CUDA_FOUND, or MOE_EXPORT_CUDA_MISSING to what is missing.
set(triton_version 3.9.0)
set(MOE_EXPORT_CUDA_FOUND OFF)

find_program(MOE_EXPORT_NVCC nvcc
  HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NOT MOE_EXPORT_NVCC)
  set(MOE_EXPORT_CUDA_MISSING "nvcc (CUDA toolkit 12.8 or later) was not found on PATH or in CUDA_HOME")
  return()
endif()
file(REAL_PATH ${MOE_EXPORT_NVCC} nvcc_file)
execute_process(COMMAND ${MOE_EXPORT_NVCC} --version OUTPUT_VARIABLE nvcc_says)
string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _ "${nvcc_says}")
set(MOE_EXPORT_NVCC_VERSION ${CMAKE_MATCH_1})
if(MOE_EXPORT_NVCC_VERSION VERSION_LESS 12.8)
  set(MOE_EXPORT_CUDA_MISSING
    "nvcc 12.8 or later is needed; found ${MOE_EXPORT_NVCC_VERSION} in ${MOE_EXPORT_NVCC}")
  return()
endif()
# nvcc may be a script that calls the toolkit's own; the toolkit says where it is.
execute_process(COMMAND ${MOE_EXPORT_NVCC} --dryrun -x cu - INPUT_FILE /dev/null ERROR_VARIABLE dry_run)
string(REGEX MATCH "_HERE_=([^\n]+)" _ "${dry_run}")
set(toolkit_bin ${CMAKE_MATCH_1})
find_path(MOE_EXPORT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS ${toolkit_bin}/../include ${toolkit_bin}/../targets/x86_64-linux/include)
find_program(MOE_EXPORT_PTXAS ptxas HINTS ${toolkit_bin})
if(NOT MOE_EXPORT_CUDA_INCLUDE_DIR OR NOT MOE_EXPORT_PTXAS)
  set(MOE_EXPORT_CUDA_MISSING "nvcc was found, but not its toolkit's headers and ptxas")
  return()
endif()

find_package(Python3 REQUIRED COMPONENTS Interpreter)
if(Python_EXECUTABLE)  # scikit-build-core's
  set(Python3_EXECUTABLE ${Python_EXECUTABLE})
endif()
if(DEFINED ENV{XDG_CACHE_HOME})
  set(cache $ENV{XDG_CACHE_HOME}/moe-export)
else()
  set(cache $ENV{HOME}/.cache/moe-export)
endif()
# Where triton lies, whether this Python has it or the cache.
set(where "import pathlib, sys
sys.path.append(sys.argv[1])
import triton
assert triton.__version__ == '${triton_version}'
print(pathlib.Path(triton.__file__).parents[1])")
execute_process(
  COMMAND ${Python3_EXECUTABLE} -c "import sys; print('%d%d' % sys.version_info[:2])"
  OUTPUT_VARIABLE python_version OUTPUT_STRIP_TRAILING_WHITESPACE)
set(fetched ${cache}/triton-${triton_version}-py${python_version})
foreach(attempt have fetch)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c "${where}" ${fetched}
    RESULT_VARIABLE failed ERROR_VARIABLE reason
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT failed OR attempt STREQUAL fetch)
    break()
  endif()
  message(STATUS "Fetching triton ${triton_version}, which compiles GPU kernels")
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -m pip install --quiet --no-deps --upgrade
      --target ${fetched} triton==${triton_version}
    RESULT_VARIABLE failed ERROR_VARIABLE reason)
  if(failed)
    break()
  endif()
endforeach()
if(failed)
  string(STRIP "${reason}" reason)
  set(MOE_EXPORT_CUDA_MISSING "triton ${triton_version} cannot be had: ${reason}")
  return()
endif()
set(MOE_EXPORT_TRITON_FOLDER ${folder} CACHE PATH "The folder that holds triton" FORCE)
set(MOE_EXPORT_CUDA_FOUND ON)
