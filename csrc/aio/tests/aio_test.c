/* Every engine that works here, on a file in the current directory. */
#define _GNU_SOURCE
#include "lohan_aio.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: %s: not %s\n", __FILE__, __LINE__, __func__, #condition);                                \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

enum { PAGE = 4096, BLOCK = 2 * PAGE, DEPTH = 4, PAGES = 41, BYTES = PAGES * PAGE };

static int kind;
static int file;
static char *source, *target;

static char *allocate(size_t bytes) {
  char *memory = aligned_alloc(PAGE, bytes);
  CHECK(memory);
  return memory;
}

static void scramble(char *memory, size_t bytes, unsigned seed) {
  for (size_t i = 0; i < bytes; i++)
    memory[i] = (char)((seed = seed * 1664525u + 1013904223u) >> 24);
}

static lohan_aio *open_engine(void) {
  int error = 0;
  lohan_aio *engine = lohan_aio_open(kind, DEPTH, BLOCK, PAGE, &error);
  CHECK(engine && !error);
  return engine;
}

static lohan_aio_request *submit(lohan_aio *engine, int direction, char *memory, uint64_t offset, uint64_t length) {
  lohan_aio_segment segment = {file, offset, length, (uintptr_t)memory};
  int error = 0;
  lohan_aio_request *request = lohan_aio_submit(engine, direction, &segment, 1, &error);
  CHECK(request && !error);
  return request;
}

static lohan_aio_failure finish(lohan_aio_request *request) {
  lohan_aio_failure failure, again;
  CHECK(lohan_aio_wait(request, &failure) == failure.error);
  CHECK(lohan_aio_done(request));
  CHECK(lohan_aio_wait(request, &again) == failure.error);
  lohan_aio_release(request);
  return failure;
}

static lohan_aio_failure move(lohan_aio *engine, int direction, char *memory) {
  return finish(submit(engine, direction, memory, 0, BYTES));
}

static void check_round_trip(lohan_aio *engine, unsigned seed) {
  scramble(source, BYTES, seed);
  memset(target, 0, BYTES);
  CHECK(move(engine, LOHAN_AIO_WRITE, source).error == 0);
  CHECK(move(engine, LOHAN_AIO_READ, target).error == 0);
  CHECK(!memcmp(source, target, BYTES));
}

static void test_round_trip(void) {
  lohan_aio *engine = open_engine();
  check_round_trip(engine, 1);
  CHECK(lohan_aio_bytes(engine, LOHAN_AIO_READ) == BYTES && lohan_aio_bytes(engine, LOHAN_AIO_WRITE) == BYTES);
  lohan_aio_close(engine);
}

static void test_registered(void) {
  lohan_aio *engine = open_engine();
  int error = lohan_aio_add_file(engine, file);
  CHECK(error == 0 || (error == -EOPNOTSUPP && kind != LOHAN_AIO_IO_URING));
  error = lohan_aio_add_memory(engine, (uintptr_t)target, BYTES);
  CHECK(error == 0 || (error == -EOPNOTSUPP && kind != LOHAN_AIO_IO_URING));
  check_round_trip(engine, 2);
  lohan_aio_remove_file(engine, file);
  check_round_trip(engine, 3);
  CHECK(lohan_aio_remove_memories(engine) == 0);
  check_round_trip(engine, 4);
  for (int again = 0; again < 2000; again++) { /* more often than the table has entries */
    error = lohan_aio_add_memory(engine, (uintptr_t)target, BYTES);
    CHECK(error == 0 || (error == -EOPNOTSUPP && kind != LOHAN_AIO_IO_URING));
    CHECK(lohan_aio_remove_memories(engine) == 0);
  }
  lohan_aio_close(engine);
}

static void test_segments(void) {
  lohan_aio *engine = open_engine();
  lohan_aio_segment segments[PAGES];
  int error;
  scramble(source, BYTES, 4);
  for (int i = 0; i < PAGES; i++) /* backwards, so that no two are neighbours */
    segments[i] = (lohan_aio_segment){file, (uint64_t)(PAGES - 1 - i) * PAGE, PAGE, (uintptr_t)source + i * PAGE};
  CHECK(finish(lohan_aio_submit(engine, LOHAN_AIO_WRITE, segments, PAGES, &error)).error == 0);
  CHECK(move(engine, LOHAN_AIO_READ, target).error == 0);
  for (int i = 0; i < PAGES; i++)
    CHECK(!memcmp(source + i * PAGE, target + (PAGES - 1 - i) * PAGE, PAGE));
  CHECK(finish(lohan_aio_submit(engine, LOHAN_AIO_READ, segments, 0, &error)).error == 0);
  lohan_aio_close(engine);
}

static void test_passing_faults(void) {
  const struct {
    uint64_t times;
    int error;
    uint64_t short_bytes;
  } faults[] = {{5, EINTR, 0}, {5, EAGAIN, 0}, {5, 0, PAGE}, {5, 0, 100}, {300, 0, PAGE + 100}};
  for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
    lohan_aio *engine = open_engine();
    for (int direction = LOHAN_AIO_READ; direction <= LOHAN_AIO_WRITE; direction++)
      lohan_aio_inject(engine, direction, i, faults[i].times, faults[i].error, faults[i].short_bytes);
    check_round_trip(engine, 10 + (unsigned)i);
    lohan_aio_close(engine);
  }
}

static void test_lasting_faults(void) {
  const int errors[] = {EIO, ENOSPC, EAGAIN, EINTR};
  for (int direction = LOHAN_AIO_READ; direction <= LOHAN_AIO_WRITE; direction++)
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
      lohan_aio *engine = open_engine();
      lohan_aio_inject(engine, direction, 3, UINT64_MAX, errors[i], 0);
      lohan_aio_failure failure = move(engine, direction, source);
      CHECK(failure.error == errors[i] && failure.fd == file && failure.offset == 3 * BLOCK);
      CHECK(lohan_aio_bytes(engine, direction) == 0);
      lohan_aio_inject(engine, direction, 0, 0, 0, 0);
      check_round_trip(engine, 20);
      lohan_aio_close(engine);
    }
}

static void test_nothing_moves(void) {
  lohan_aio *engine = open_engine();
  lohan_aio_inject(engine, LOHAN_AIO_WRITE, 0, UINT64_MAX, 0, 100);
  CHECK(move(engine, LOHAN_AIO_WRITE, source).error == EIO);
  lohan_aio_inject(engine, LOHAN_AIO_READ, 0, UINT64_MAX, 0, 100);
  CHECK(move(engine, LOHAN_AIO_READ, target).error == ENODATA);
  lohan_aio_close(engine);
}

static void test_truncated_file(void) {
  const uint64_t ends[] = {0, PAGE, 7 * PAGE, 7 * PAGE + 100};
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
    lohan_aio *engine = open_engine();
    check_round_trip(engine, 30);
    CHECK(!ftruncate(file, (off_t)ends[i]));
    lohan_aio_failure failure = move(engine, LOHAN_AIO_READ, target);
    CHECK(failure.error == ENODATA && failure.fd == file && failure.offset >= ends[i] / PAGE * PAGE);
    lohan_aio_close(engine);
  }
}

static void test_real_errors(void) {
  lohan_aio *engine = open_engine();
  int read_only = open("/proc/self/exe", O_RDONLY);
  lohan_aio_segment segment = {read_only, 0, PAGE, (uintptr_t)source};
  int error;
  CHECK(finish(lohan_aio_submit(engine, LOHAN_AIO_WRITE, &segment, 1, &error)).error == EBADF);
  close(read_only);
  CHECK(finish(lohan_aio_submit(engine, LOHAN_AIO_READ, &segment, 1, &error)).error == EBADF);
  segment = (lohan_aio_segment){file, 0, PAGE, 0};
  CHECK(move(engine, LOHAN_AIO_WRITE, source).error == 0);
  CHECK(finish(lohan_aio_submit(engine, LOHAN_AIO_READ, &segment, 1, &error)).error == EFAULT);
  CHECK(!lohan_aio_submit(engine, LOHAN_AIO_REGISTER, &segment, 1, &error) && error == -EINVAL);
  check_round_trip(engine, 40);
  lohan_aio_close(engine);
}

static void test_released_early(void) {
  lohan_aio *engine = open_engine();
  scramble(source, BYTES, 50);
  lohan_aio_release(submit(engine, LOHAN_AIO_WRITE, source, 0, BYTES));
  lohan_aio_close(engine); /* waits */
  engine = open_engine();
  CHECK(move(engine, LOHAN_AIO_READ, target).error == 0);
  CHECK(!memcmp(source, target, BYTES));
  lohan_aio_request *request = submit(engine, LOHAN_AIO_READ, target, 0, BYTES);
  lohan_aio_close(engine);
  CHECK(finish(request).error == 0); /* outlives the engine */
}

static void *read_often(void *argument) {
  lohan_aio *engine = argument;
  char *own = allocate(BYTES), *other = allocate(BLOCK);
  for (int turn = 0; turn < 20; turn++) {
    memset(own, 0, BYTES);
    lohan_aio_request *first = submit(engine, LOHAN_AIO_READ, other, 0, BLOCK);
    CHECK(finish(submit(engine, LOHAN_AIO_READ, own, 0, BYTES)).error == 0);
    CHECK(finish(first).error == 0);
    CHECK(!memcmp(own, source, BYTES) && !memcmp(other, source, BLOCK));
  }
  free(other);
  free(own);
  return NULL;
}

static void test_many_threads(void) {
  lohan_aio *engine = open_engine();
  pthread_t threads[4];
  check_round_trip(engine, 60);
  lohan_aio_inject(engine, LOHAN_AIO_READ, 20, 20, EAGAIN, 0);
  for (int i = 0; i < 4; i++)
    CHECK(!pthread_create(&threads[i], NULL, read_often, engine));
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  CHECK(lohan_aio_bytes(engine, LOHAN_AIO_READ) == BYTES + 4 * 20 * (BYTES + (uint64_t)BLOCK));
  lohan_aio_close(engine);
}

/* Puts another file in the place of the ring's, so that the kernel refuses to serve it. */
static bool break_ring(void) {
  char path[64], link[64];
  int other = open("/dev/null", O_RDWR), broken = 0;
  for (int fd = 0; fd < 64; fd++) {
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof link - 1);
    link[length < 0 ? 0 : length] = 0;
    if (!strcmp(link, "anon_inode:[io_uring]"))
      broken += dup2(other, fd) == fd;
  }
  close(other);
  return broken == 1;
}

static void test_lost_ring(void) {
  if (kind != LOHAN_AIO_IO_URING)
    return;
  lohan_aio *engine = open_engine();
  check_round_trip(engine, 70);
  CHECK(break_ring());
  lohan_aio_request *first = submit(engine, LOHAN_AIO_READ, target, 0, BYTES);
  CHECK(finish(first).error);
  lohan_aio_segment segment = {file, 0, PAGE, (uintptr_t)target};
  int error = 0;
  CHECK(!lohan_aio_submit(engine, LOHAN_AIO_READ, &segment, 1, &error) && error < 0);
  lohan_aio_close(engine);
}

static void test_bad_settings(void) {
  int error = 0;
  CHECK(!lohan_aio_open(kind, 0, BLOCK, PAGE, &error) && error == -EINVAL);
  CHECK(!lohan_aio_open(kind, 1, PAGE + 1, PAGE, &error) && error == -EINVAL);
  CHECK(!lohan_aio_open(kind, 1, 3000, 3000, &error) && error == -EINVAL);
  CHECK(!lohan_aio_open(99, 1, BLOCK, PAGE, &error) && error == -EOPNOTSUPP);
  CHECK(!lohan_aio_built(99));
}

static void test_engine(const char *name, int direct) {
  char path[] = "aio_test.XXXXXX";
  file = mkstemp(path);
  CHECK(file >= 0);
  close(file);
  file = open(path, O_RDWR | (direct ? O_DIRECT : 0));
  unlink(path);
  if (file < 0 && errno == EINVAL) {
    printf("no O_DIRECT here\n");
    return;
  }
  CHECK(file >= 0);
  CHECK(!direct || lohan_aio_direct_alignment(file) <= PAGE);
  test_round_trip();
  test_registered();
  test_segments();
  test_passing_faults();
  test_lasting_faults();
  test_nothing_moves();
  test_truncated_file();
  test_real_errors();
  test_released_early();
  test_many_threads();
  test_lost_ring();
  test_bad_settings();
  close(file);
  printf("tested %s%s\n", name, direct ? " with O_DIRECT" : "");
}

int main(void) {
  const char *names[] = {
      [LOHAN_AIO_THREADS] = "threads", [LOHAN_AIO_LIBAIO] = "libaio", [LOHAN_AIO_IO_URING] = "io_uring"};
  source = allocate(BYTES);
  target = allocate(BYTES);
  for (kind = LOHAN_AIO_THREADS; kind <= LOHAN_AIO_IO_URING; kind++) {
    int error = lohan_aio_probe(kind);
    if (error) {
      printf("no %s: %s\n", names[kind], strerror(-error));
      continue;
    }
    test_engine(names[kind], 0);
    test_engine(names[kind], 1);
  }
  free(source);
  free(target);
  return 0;
}
