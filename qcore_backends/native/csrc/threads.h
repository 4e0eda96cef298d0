// Threads of our own, and the barriers between operations. Those of torch are in qcore/openmp.h.

#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace qcore {

// How often a waiting thread looks before it gives way: some microseconds.
constexpr int kSpins = 500;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Lets `size` threads pass together, over and over.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}

  void wait() {
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int i = 0; round_.load(std::memory_order_acquire) == round; ++i) {
      if (i < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

// Where there is no OpenMP: workers that sleep between jobs. One job runs at a time; its caller is one of the threads.
class ThreadPool {
 public:
  // The pool of this process. A fork leaves the threads behind, so the child makes a new one; the
  // old is never freed, as its threads could not be joined.
  static ThreadPool& of_process() {
    static std::mutex mutex;
    static ThreadPool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (!pool || owner != getpid()) {
      pool = new ThreadPool;
      owner = getpid();
    }
    return *pool;
  }

  // Runs job(thread, barrier) for thread = 0 .. threads - 1 at the same time.
  // False, with nothing done, if another job is running or a thread can't be started.
  template <class Job>
  bool run(int threads, const Job& job) {
    Barrier barrier(threads);
    return start(threads, [&](int thread) { job(thread, [&] { barrier.wait(); }); });
  }

 private:
  bool start(int threads, const std::function<void(int)>& job) {
    std::unique_lock<std::mutex> only(running_, std::try_to_lock);
    if (!only.owns_lock() || !grow(threads - 1)) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = threads - 1;
      left_.store(wanted_, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job(0);
    for (int i = 0; left_.load(std::memory_order_acquire) != 0; ++i) {
      if (i < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
    return true;
  }

  bool grow(int workers) {
    try {
      while (static_cast<int>(workers_.size()) < workers) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index] { work(index); });
        workers_.back().detach();
      }
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }

  void work(int index) {
    unsigned seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins; ++i) {
        if (generation_.load(std::memory_order_acquire) != seen) break;
        pause();
      }
      const std::function<void(int)>* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (index < wanted_) job = job_;
      }
      if (job) {
        (*job)(index + 1);
        left_.fetch_sub(1, std::memory_order_acq_rel);
      }
    }
  }

  std::mutex running_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  int wanted_ = 0;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> left_{0};
};

}  // namespace qcore
