// The part of ONNX Runtime's C ABI that the library uses, API version 17. No runtime ships headers
// in its wheel; `OrtApi` is an append-only table whose slots never move, so declaring the slots in
// use is enough, and there is nothing to link.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;

/// The table of functions, by slot.
struct OrtApi {
  void* slots[275];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum OrtErrorCode { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

enum OrtCustomOpInputOutputCharacteristic {
  INPUT_OUTPUT_REQUIRED = 0,
  INPUT_OUTPUT_OPTIONAL = 1,
};

enum OrtOpAttrType { ORT_OP_ATTR_INT = 1 };

enum OrtMemType { OrtMemTypeDefault = 0 };

/// A custom op: callbacks that the runtime calls, in the ABI's order. Those past GetEndVersion are
/// younger than API 17 and stay null.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 208, "the layout of OrtCustomOp is ABI");

namespace moe_export::ort {

inline constexpr uint32_t kApiVersion = 17;

/// A function of the table: `function(api, arguments...)`.
template <size_t kSlot, class Result, class... Args>
struct ApiFunction {
  Result operator()(const OrtApi* api, Args... args) const {
    return reinterpret_cast<Result (*)(Args...)>(api->slots[kSlot])(args...);
  }
};

/// A function of the table that can fail; null means success.
template <size_t kSlot, class... Args>
using Fallible = ApiFunction<kSlot, OrtStatus*, Args...>;

// The names are the ABI's.
// clang-format off
inline constexpr Fallible<0, OrtErrorCode, const char*> CreateStatus;
inline constexpr ApiFunction<2, const char*, const OrtStatus*> GetErrorMessage;
inline constexpr Fallible<26, const char*, OrtCustomOpDomain**> CreateCustomOpDomain;
inline constexpr Fallible<27, OrtCustomOpDomain*, const OrtCustomOp*> CustomOpDomain_Add;
inline constexpr Fallible<28, OrtSessionOptions*, OrtCustomOpDomain*> AddCustomOpDomain;
inline constexpr Fallible<51, OrtValue*, void**> GetTensorMutableData;
inline constexpr Fallible<57, OrtTensorTypeAndShapeInfo**> CreateTensorTypeAndShapeInfo;
inline constexpr Fallible<58, OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType> SetTensorElementType;
inline constexpr Fallible<59, OrtTensorTypeAndShapeInfo*, const int64_t*, size_t> SetDimensions;
inline constexpr Fallible<60, const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*> GetTensorElementType;
inline constexpr Fallible<61, const OrtTensorTypeAndShapeInfo*, size_t*> GetDimensionsCount;
inline constexpr Fallible<62, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t> GetDimensions;
inline constexpr Fallible<63, const OrtTensorTypeAndShapeInfo*, const char**, size_t> GetSymbolicDimensions;
inline constexpr Fallible<65, const OrtValue*, OrtTensorTypeAndShapeInfo**> GetTensorTypeAndShape;
inline constexpr Fallible<85, const OrtKernelInfo*, const char*, float*> KernelInfoGetAttribute_float;
inline constexpr Fallible<86, const OrtKernelInfo*, const char*, int64_t*> KernelInfoGetAttribute_int64;
inline constexpr Fallible<87, const OrtKernelInfo*, const char*, char*, size_t*> KernelInfoGetAttribute_string;
inline constexpr Fallible<88, const OrtKernelContext*, size_t*> KernelContext_GetInputCount;
inline constexpr Fallible<90, const OrtKernelContext*, size_t, const OrtValue**> KernelContext_GetInput;
inline constexpr Fallible<91, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**> KernelContext_GetOutput;
inline constexpr ApiFunction<93, void, OrtStatus*> ReleaseStatus;
inline constexpr ApiFunction<99, void, OrtTensorTypeAndShapeInfo*> ReleaseTensorTypeAndShapeInfo;
inline constexpr Fallible<193, const OrtKernelContext*, void**> KernelContext_GetGPUComputeStream;
inline constexpr Fallible<230, const OrtKernelInfo*, size_t*> KernelInfo_GetInputCount;
inline constexpr Fallible<267, const OrtShapeInferContext*, size_t*> ShapeInferContext_GetInputCount;
inline constexpr Fallible<268, const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**> ShapeInferContext_GetInputTypeShape;
inline constexpr Fallible<269, const OrtShapeInferContext*, const char*, const OrtOpAttr**> ShapeInferContext_GetAttribute;
inline constexpr Fallible<270, const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*> ShapeInferContext_SetOutputTypeShape;
inline constexpr Fallible<271, OrtTensorTypeAndShapeInfo*, const char**, size_t> SetSymbolicDimensions;
inline constexpr Fallible<272, const OrtOpAttr*, OrtOpAttrType, void*, size_t, size_t*> ReadOpAttr;
inline constexpr Fallible<274, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*> KernelContext_ParallelFor;
// clang-format on

}  // namespace moe_export::ort
