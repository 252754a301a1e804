// A few threads of our own over independent tasks. BLAS is expected to run on one thread in each of
// them (the caller sees to that): threads inside threads only wait for one another.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "fairsteer/types.hpp"

namespace fairsteer::detail {

/// Tasks take turns here, by their number, so that sums do not depend on which thread was faster.
class Turns {
 public:
  /// Runs `function` when all tasks before `task` have had their turn; not at all after `give_up`.
  template <class Function>
  void take(Index task, Function function) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return next_ == task || given_up_; });
    if (given_up_) return;
    lock.unlock();  // nobody else's turn comes before the next line but one
    function();
    lock.lock();
    ++next_;
    ready_.notify_all();
  }

  void give_up() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    ready_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  Index next_ = 0;
  bool given_up_ = false;
};

/// Calls `work(task, thread)` for every task, in ascending order, on at most `n_threads` threads,
/// the caller's among them. Rethrows the first exception; `on_failure` runs before, so that no task
/// waits for one that will not come.
template <class Work, class OnFailure>
void for_each_task(Index n_tasks, Index n_threads, Work work, OnFailure on_failure) {
  std::atomic<Index> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto run = [&](Index thread) {
    try {
      for (Index task = next++; task < n_tasks; task = next++) work(task, thread);
    } catch (...) {
      next = n_tasks;
      on_failure();
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(std::max<Index>(0, std::min(n_threads, n_tasks))));
  for (Index thread = 1; thread < std::min(n_threads, n_tasks); ++thread) {
    try {
      others.emplace_back(run, thread);
    } catch (const std::system_error&) {
      break;  // no more threads to be had; the work gets done by those there are
    }
  }
  run(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

template <class Work>
void for_each_task(Index n_tasks, Index n_threads, Work work) {
  for_each_task(n_tasks, n_threads, work, [] {});
}

}  // namespace fairsteer::detail
