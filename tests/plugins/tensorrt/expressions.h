#pragma once
#include <NvInferRuntime.h>

#include <list>
#include <string>

namespace moe_export::test {

/// Sizes as the builder has them: known, or by name.
class Expression final : public nvinfer1::IDimensionExpr, nvinfer1::apiv::VDimensionExpr {
 public:
  Expression(int64_t value, std::string text) : value_(value), text_(std::move(text)) {
    mImpl = this;
  }
  ~Expression() noexcept override = default;

  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

  const std::string& text() const { return text_; }

 private:
  int64_t value_;
  std::string text_;
};

/// Makes them; keeps what it has made.
class ExpressionBuilder final : public nvinfer1::IExprBuilder, nvinfer1::apiv::VExprBuilder {
 public:
  ExpressionBuilder() { mImpl = this; }
  ~ExpressionBuilder() noexcept override = default;

  const nvinfer1::IDimensionExpr* constant(int64_t value) override {
    return &made_.emplace_back(value, std::to_string(value));
  }
  const nvinfer1::IDimensionExpr* named(const std::string& name) {
    return &made_.emplace_back(-1, name);
  }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                            const nvinfer1::IDimensionExpr& first,
                                            const nvinfer1::IDimensionExpr& second) override {
    const bool product = operation == nvinfer1::DimensionOperation::kPROD;
    return named(text(first) + (product ? "*" : "?") + text(second));
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

  static std::string text(const nvinfer1::IDimensionExpr& expression) {
    return static_cast<const Expression&>(expression).text();
  }

 private:
  std::list<Expression> made_;
};

}  // namespace moe_export::test
