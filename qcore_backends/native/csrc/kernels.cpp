// All kernels for one instruction set. This file is compiled once for each, with QCORE_ISA as the
// name of the namespace and of the table that it exports.

#include "kernels.h"

#include "depthwise.h"
#include "elementwise.h"
#include "gather.h"
#include "gemm.h"
#include "move.h"
#include "pack.h"
#include "pool.h"

namespace qcore {
namespace QCORE_ISA {
namespace {

template <typename Implementation, auto kMember>
constexpr Kernel kernel() {
  return {
      [](const Op& op) { return Implementation::tasks(op.*kMember); },
      [](const Op& op) { return Implementation::scratch(op.*kMember); },
      [](const Op& op, int64_t task, const Context& context) {
        Implementation::run(op.*kMember, task, context);
      },
  };
}

[[maybe_unused]] void nothing() {}

}  // namespace

extern const Kernels kernels;

// In the order of Kind.
const Kernels kernels = {
    {
        kernel<GemmKernel, &Op::gemm>(),
        kernel<GatherKernel, &Op::gather>(),
        kernel<DepthwiseKernel, &Op::depthwise>(),
        kernel<PackKernel, &Op::pack>(),
        kernel<QuantizeKernel, &Op::move>(),
        kernel<DequantizeKernel, &Op::elementwise>(),
        kernel<AddKernel, &Op::elementwise>(),
        kernel<MulKernel, &Op::elementwise>(),
        kernel<RequantizeKernel, &Op::elementwise>(),
        kernel<TableKernel, &Op::elementwise>(),
        kernel<MaxPoolKernel, &Op::pool>(),
        kernel<SumPoolKernel, &Op::pool>(),
        kernel<CopyKernel, &Op::move>(),
    },
#if defined(__AMX_INT8__)
    begin_tiles,
    end_tiles,
#else
    nothing,
    nothing,
#endif
};

}  // namespace QCORE_ISA
}  // namespace qcore
