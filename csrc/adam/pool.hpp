// A small persistent thread pool. Not OpenMP: a second OpenMP runtime beside torch's oversubscribes the cores.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace lohan::adam {

class ThreadPool {
public:
  // `threads` counts the calling thread: 1 starts none. Throws std::invalid_argument for 0.
  explicit ThreadPool(unsigned threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  unsigned threads() const;

  // Calls body(i) once for each i < count, spread over the threads, and returns when all have returned. `body` must not
  // throw. Calls from several threads take turns. Throws std::runtime_error in a process forked since construction.
  void for_each(std::size_t count, const std::function<void(std::size_t)> &body);

private:
  struct State;
  std::unique_ptr<State> state_;
};

} // namespace lohan::adam
