// The functions that Python calls: what this processor offers, and running a program.

#include <cstdlib>
#include <memory>

#include <qcore/openmp.h>

#include "kernels.h"
#include "threads.h"

#if defined(__x86_64__)
#include <sys/syscall.h>
#endif

namespace qcore {

// One table for each instruction set that was compiled, weakest first; see building.py.
#define QCORE_DECLARE(name) \
  namespace name {          \
  extern const Kernels kernels; \
  }
QCORE_DECLARE(generic)
#if defined(__x86_64__)
QCORE_DECLARE(avx2)
QCORE_DECLARE(avx512vnni)
QCORE_DECLARE(avx512vbmi)
QCORE_DECLARE(amx)
#endif
#undef QCORE_DECLARE

namespace {

const Kernels* const kTables[] = {
    &generic::kernels,
#if defined(__x86_64__)
    &avx2::kernels, &avx512vnni::kernels, &avx512vbmi::kernels, &amx::kernels,
#endif
};

#if defined(__x86_64__)
// Tiles are state that the kernel keeps for a process only after it was asked to.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_int8() {
  unsigned a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return (d & kTile) && (d & kInt8);
}
#endif

int find_best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return 0;
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (!vnni) return 1;
  if (!__builtin_cpu_supports("avx512vbmi")) return 2;
  return has_amx_int8() && may_use_tiles() ? 4 : 3;
#else
  return 0;
#endif
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// Memory of the calling thread that grows and stays; null if there is none.
char* scratch_memory(int64_t bytes) {
  static thread_local std::unique_ptr<char, Free> memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes))));
    size = memory ? bytes : 0;
  }
  return memory.get();
}

// All operations, one after the other; the threads take the tasks of each as they get done.
class Execution {
 public:
  Execution(const Kernels& kernels, const Op* ops, int64_t count, char* const* slots, char* scratch,
            int64_t scratch_bytes, std::atomic<int64_t>* taken)
      : kernels_(kernels),
        ops_(ops),
        count_(count),
        slots_(slots),
        scratch_(scratch),
        scratch_bytes_(scratch_bytes),
        taken_(taken) {}

  template <class Barrier>
  void work(int thread, const Barrier& barrier) const {
    const Context context{slots_, scratch_ + thread * scratch_bytes_};
    kernels_.begin();
    for (int64_t i = 0; i < count_; ++i) {
      const Op& op = ops_[i];
      const Kernel& kernel = kernels_.kinds[static_cast<int64_t>(op.kind)];
      const int64_t tasks = kernel.tasks(op);
      for (;;) {
        const int64_t task = taken_[i].fetch_add(1, std::memory_order_relaxed);
        if (task >= tasks) break;
        kernel.run(op, task, context);
      }
      barrier();
    }
    kernels_.end();
  }

 private:
  const Kernels& kernels_;
  const Op* const ops_;
  const int64_t count_;
  char* const* const slots_;
  char* const scratch_;
  const int64_t scratch_bytes_;
  std::atomic<int64_t>* const taken_;
};

void run_alone(const Kernels& kernels, const Op* ops, int64_t count, const Context& context) {
  kernels.begin();
  for (int64_t i = 0; i < count; ++i) {
    const Kernel& kernel = kernels.kinds[static_cast<int64_t>(ops[i].kind)];
    const int64_t tasks = kernel.tasks(ops[i]);
    for (int64_t task = 0; task < tasks; ++task) kernel.run(ops[i], task, context);
  }
  kernels.end();
}

}  // namespace
}  // namespace qcore

#pragma GCC visibility push(default)
extern "C" {

// Index of the best instruction set that was compiled and works here; every lower one works too.
int qcore_native_best() {
  static const int best = qcore::find_best();
  return best;
}

int64_t qcore_native_op_bytes() { return sizeof(qcore::Op); }

// Runs `count` operations. Returns 0, or 1 if there is no memory.
int qcore_native_run(const qcore::Op* ops, int64_t count, char* const* slots, int threads,
                     int isa) {
  using namespace qcore;
  const Kernels& kernels = *kTables[isa];
  int64_t bytes = 64;
  for (int64_t i = 0; i < count; ++i) {
    bytes = std::max(bytes, kernels.kinds[static_cast<int64_t>(ops[i].kind)].scratch(ops[i]));
  }
  // Threads must not write to the same cache line.
  bytes = (bytes + 127) / 64 * 64;
  constexpr int64_t kCounter = sizeof(std::atomic<int64_t>);
  const int64_t counters = (count * kCounter + 63) / 64 * 64;
  char* memory = scratch_memory(bytes * threads + counters);
  if (!memory) return 1;
  if (threads > 1) {
    auto* taken = reinterpret_cast<std::atomic<int64_t>*>(memory + bytes * threads);
    for (int64_t i = 0; i < count; ++i) new (taken + i) std::atomic<int64_t>(0);
    const Execution execution(kernels, ops, count, slots, memory, bytes, taken);
    const auto job = [&](int thread, const auto& barrier) { execution.work(thread, barrier); };
    if (const OpenMP* openmp = OpenMP::of_process()) {
      openmp->run(threads, job);
      return 0;
    }
    if (ThreadPool::of_process().run(threads, job)) return 0;
  }
  run_alone(kernels, ops, count, Context{slots, memory});
  return 0;
}

}  // extern "C"
#pragma GCC visibility pop
