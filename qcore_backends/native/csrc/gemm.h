// Matrix products of bytes, with rows as they lie or gathered from an image.

#pragma once

#include "gather.h"
#include "gemm_vectors.h"

#if defined(__AMX_INT8__)
#include "gemm_tiles.h"
#endif

namespace qcore {
namespace QCORE_ISA {

struct GemmKernel {
  // Tiles may read a block of 32 rows where there are fewer.
  static int64_t panel_rows(const Gemm& op) { return round_up(op.rows_a_task, 32); }
  static int64_t row_blocks(const Gemm& op) {
    return (op.rows + op.rows_a_task - 1) / op.rows_a_task;
  }
  static int64_t all_panels(const Gemm& op) { return (op.columns + kLanes - 1) / kLanes; }
  static int64_t panel_blocks(const Gemm& op) {
    return (all_panels(op) + op.panels_a_task - 1) / op.panels_a_task;
  }

  static int64_t tasks(const Gemm& op) {
    return op.outer * op.inner * row_blocks(op) * panel_blocks(op);
  }

  // Two blocks of sums for tiles, the row terms, gathered rows, and what a copy spills.
  static constexpr int64_t kSumsBytes = 2 * 32 * 32 * 4;
  static int64_t terms_bytes(const Gemm& op) { return round_up(op.rows_a_task * 4, 64); }
  static int64_t scratch(const Gemm& op) {
    const int64_t gathered = op.gathers ? panel_rows(op) * op.depth_padded + 64 : 0;
    return kSumsBytes + terms_bytes(op) + gathered;
  }

  static void run(const Gemm& op, int64_t task, const Context& context) {
    const int64_t panel_block = task % panel_blocks(op);
    task /= panel_blocks(op);
    const int64_t row_block = task % row_blocks(op);
    task /= row_blocks(op);
    const int64_t inner = task % op.inner, outer = task / op.inner;

    GemmTask job;
    job.row = row_block * op.rows_a_task;
    job.rows = min(op.rows_a_task, op.rows - job.row);
    job.panel = panel_block * op.panels_a_task;
    job.panels = min(op.panels_a_task, all_panels(op) - job.panel);
    job.columns = op.columns;
    job.panel_bytes = op.depth_padded * kLanes;
    job.weight = at<const int8_t>(context, op.weight) + outer * op.weight_outer +
                 inner * op.weight_inner + job.panel * job.panel_bytes;
    job.bias =
        at<const int32_t>(context, op.bias) + outer * op.bias_outer + inner * op.bias_inner;
    job.scale = at<const float>(context, op.scale) + inner * op.scale_inner;

    const uint8_t* x = at<const uint8_t>(context, op.x) + outer * op.x_outer + inner * op.x_inner;
    int32_t* terms = reinterpret_cast<int32_t*>(context.scratch + kSumsBytes);
    if (op.gathers) {
      uint8_t* rows =
          reinterpret_cast<uint8_t*>(context.scratch) + kSumsBytes + terms_bytes(op);
      gather_rows(op.window, x, op.channels, static_cast<uint8_t>(op.padding_value), job.row,
                  job.row + job.rows, rows, op.depth_padded);
      job.x = rows;
      job.x_row = op.depth_padded;
    } else {
      job.x = x + job.row * op.x_row;
      job.x_row = op.x_row;
    }
    job.row_terms = nullptr;
    if (op.row_factor) {
      sum_rows(job.x, job.x_row, job.rows, op.depth, op.row_factor, terms);
      job.row_terms = terms;
    }

    Epilogue epilogue(op.output, context);
    epilogue.advance(outer * op.y_outer + inner * op.y_inner);
#if defined(__AMX_INT8__)
    if (op.tiles) {
      multiply_tiles(job, epilogue, op.depth_padded, reinterpret_cast<int32_t*>(context.scratch));
      return;
    }
#endif
    multiply(job, epilogue, op.depth);
  }
};

}  // namespace QCORE_ISA
}  // namespace qcore
