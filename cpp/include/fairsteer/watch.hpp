// What everything that takes long asks between its steps: whether to go on.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>

namespace fairsteer {

/// Made by the caller of the core, and asked by all threads that work for it.
///
/// Interruption ends the work with the exception that `poll` throws; running out of time ends it
/// with the best answer so far. One step, mostly a factorisation, is not interrupted; who knows how
/// long the next one takes asks whether there is time for it.
class Watch {
 public:
  /// Never interrupted, never out of time.
  Watch() = default;

  /// `poll` throws to interrupt; it is called by the thread that made the watch alone, at most once
  /// in 50 ms. Time is up `seconds` from now (infinity: never).
  explicit Watch(std::function<void()> poll,
                 double seconds = std::numeric_limits<double>::infinity())
      : poll_(std::move(poll)), made_(Clock::now()) {
    // A duration of the clock overflows where centuries are asked for.
    if (seconds < 1e9) {
      limited_ = true;
      deadline_ = made_ + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double>(seconds > 0 ? seconds : 0));
    }
  }

  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  /// Throws what `poll` throws, in every thread once it has thrown. Otherwise tells whether time is
  /// up, or will be in less than `ahead` seconds.
  bool stop(double ahead = 0) const {
    if (interrupted_.load(std::memory_order_acquire)) rethrow();
    if (!poll_ && !limited_) return false;
    const Clock::time_point now = Clock::now();
    if (poll_ && std::this_thread::get_id() == owner_ && now - polled_ >= kInterval) {
      polled_ = now;
      try {
        poll_();
      } catch (...) {
        {
          const std::lock_guard lock(mutex_);
          reason_ = std::current_exception();
        }
        interrupted_.store(true, std::memory_order_release);
        throw;
      }
    }
    return limited_ && std::chrono::duration<double>(deadline_ - now).count() <= ahead;
  }

  /// Seconds since this was made.
  double elapsed() const { return std::chrono::duration<double>(Clock::now() - made_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kInterval{50};

  void rethrow() const {
    const std::lock_guard lock(mutex_);
    std::rethrow_exception(reason_);
  }

  std::function<void()> poll_;
  bool limited_ = false;
  Clock::time_point made_ = Clock::now();
  Clock::time_point deadline_;
  std::thread::id owner_ = std::this_thread::get_id();
  mutable Clock::time_point polled_ = Clock::now();
  mutable std::atomic<bool> interrupted_{false};
  mutable std::mutex mutex_;
  mutable std::exception_ptr reason_;
};

}  // namespace fairsteer
