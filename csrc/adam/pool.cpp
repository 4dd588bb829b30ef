#include "pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <unistd.h>
#include <vector>

namespace lohan::adam {

namespace {

struct Job {
  const std::function<void(std::size_t)> &body;
  std::size_t count;
  std::atomic<std::size_t> next{0};

  // Indices are handed out one by one, so a thread that other work slows down simply takes fewer.
  void work() {
    for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      body(i);
    }
  }
};

} // namespace

struct ThreadPool::State {
  std::mutex turn; // held by the thread whose for_each runs
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  // Guarded by `mutex`.
  Job *job = nullptr;
  unsigned long jobs = 0; // how many there have been, so that a worker does not take the same one twice
  unsigned busy = 0;
  bool stopping = false;

  std::vector<std::thread> workers;
  pid_t process = getpid();

  void serve() {
    std::unique_lock lock(mutex);
    unsigned long seen = 0;
    for (;;) {
      wake.wait(lock, [&] { return stopping || (job != nullptr && jobs != seen); });
      if (stopping) {
        return;
      }
      seen = jobs;
      Job &mine = *job;
      ++busy;
      lock.unlock();
      mine.work();
      lock.lock();
      if (--busy == 0) {
        idle.notify_one();
      }
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread &worker : workers) {
      worker.join();
    }
  }
};

ThreadPool::ThreadPool(unsigned threads) : state_(std::make_unique<State>()) {
  if (threads == 0) {
    throw std::invalid_argument("threads must be at least 1");
  }
  State &state = *state_;
  state.workers.reserve(threads - 1);
  try {
    while (state.workers.size() + 1 < threads) {
      state.workers.emplace_back([&state] { state.serve(); });
    }
  } catch (...) { // the system refused a thread: end the ones there are, or their destructors would abort
    state.stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (state_->process != getpid()) {
    // A forked child has no workers to join, and its copy of the locks may be held for ever: leave it all alone.
    (void)state_.release();
    return;
  }
  state_->stop();
}

unsigned ThreadPool::threads() const { return static_cast<unsigned>(state_->workers.size()) + 1; }

void ThreadPool::for_each(std::size_t count, const std::function<void(std::size_t)> &body) {
  State &state = *state_;
  if (state.process != getpid()) {
    throw std::runtime_error("the optimizer's threads do not survive fork(): open it in the process that uses it");
  }
  const std::lock_guard turn(state.turn);
  Job job{body, count};
  if (count > 1 && !state.workers.empty()) {
    {
      const std::lock_guard lock(state.mutex);
      state.job = &job;
      ++state.jobs;
    }
    state.wake.notify_all();
  }
  job.work();
  // A worker that has not woken by now is not waited for: it finds no job.
  std::unique_lock lock(state.mutex);
  state.job = nullptr;
  state.idle.wait(lock, [&] { return state.busy == 0; });
}

} // namespace lohan::adam
