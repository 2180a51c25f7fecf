# Writes down which GPU parts were built, and what was missing for the others: `moe-export doctor`
# reads it.
set(kernels_missing "")
if(NOT MOE_EXPORT_CUDA_FOUND)
  set(kernels_missing "${MOE_EXPORT_CUDA_MISSING}")
endif()
foreach(text kernels_missing MOE_EXPORT_TENSORRT_MISSING)
  string(REPLACE "\\" "\\\\" ${text} "${${text}}")
  string(REPLACE "\"" "\\\"" ${text} "${${text}}")
  string(REGEX REPLACE "[\r\n\t]+" " " ${text} "${${text}}")
endforeach()
configure_file(gpu_build.json.in gpu_build.json @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gpu_build.json DESTINATION moe_export/lib)
