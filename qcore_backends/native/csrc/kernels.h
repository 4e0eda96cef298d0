// What one instruction set offers: for each kind of operation, its number of tasks, the memory that
// a thread needs for one, and the function that runs one. Tasks of an operation never write the
// same bytes and may run in any order.

#pragma once

#include "program.h"

namespace qcore {

// Pointers by slot, and memory of the calling thread.
struct Context {
  char* const* slots;
  char* scratch;
};

struct Kernel {
  int64_t (*tasks)(const Op& op);
  int64_t (*scratch)(const Op& op);
  void (*run)(const Op& op, int64_t task, const Context& context);
};

constexpr int kKinds = 13;

struct Kernels {
  Kernel kinds[kKinds];
  // Around all work of a thread.
  void (*begin)();
  void (*end)();
};

}  // namespace qcore
