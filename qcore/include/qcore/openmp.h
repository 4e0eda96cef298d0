// The threads that torch already has, for C++ that runs beside it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <dlfcn.h>
#include <unistd.h>

namespace qcore {

// The OpenMP runtime that torch loaded for all of the process, through the functions that GNU's
// compiler calls and others offer too. Its threads wait by spinning, so threads of our own beside
// them would share their processors: between float operations of torch they are half as fast.
class OpenMP {
 public:
  // Null if there is none; and after a fork, which leaves the threads of its pool behind.
  static const OpenMP* of_process() {
    static const OpenMP found;
    return found.parallel_ && found.barrier_ && found.owner_ == getpid() ? &found : nullptr;
  }

  // Runs job(thread, barrier) on up to `threads` threads at the same time.
  template <class Job>
  void run(int threads, const Job& job) const {
    struct Team {
      const Job& job;
      void (*barrier)();
      std::atomic<int> next{0};
    } team{job, barrier_};
    parallel_(
        [](void* data) {
          Team& team = *static_cast<Team*>(data);
          team.job(team.next.fetch_add(1, std::memory_order_relaxed), team.barrier);
        },
        &team, static_cast<unsigned>(threads), 0);
  }

 private:
  OpenMP()
      : parallel_(reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))),
        barrier_(reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, "GOMP_barrier"))),
        owner_(getpid()) {}

  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  const Parallel parallel_;
  void (*const barrier_)();
  const pid_t owner_;
};

// Calls work(i) for i = 0 to count - 1, on up to `threads` of these threads, or on this one alone.
template <class Work>
void for_each(int64_t count, int threads, const Work& work) {
  const int64_t useful = std::min<int64_t>(threads, count);
  const OpenMP* openmp = useful > 1 ? OpenMP::of_process() : nullptr;
  // The runtime may give fewer threads than are asked for.
  std::atomic<int64_t> taken{0};
  const auto run = [&] {
    for (int64_t i = taken++; i < count; i = taken++) work(i);
  };
  if (!openmp) return run();
  openmp->run(static_cast<int>(useful), [&](int, const auto&) { run(); });
}

}  // namespace qcore
