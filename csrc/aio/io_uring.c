/* io_uring through liburing, with files and memory registered in sparse tables. */
#include "ring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/uio.h>

enum { MAX_FILES = 16384, MAX_MEMORIES = 1024 };

/* The kernel takes no larger piece in one entry of its table. */
static const uint64_t MAX_MEMORY_BYTES = UINT64_C(1) << 30;

struct memory {
  char *start;
  char *end;
};

struct uring {
  struct aio_ring ring;
  struct io_uring kernel;
  unsigned depth;
  bool event_armed;
  eventfd_t signals;
  /* Tables that the kernel mirrors; guarded by `tables`. Files are at the index of their descriptor. */
  pthread_mutex_t tables;
  int files_error;
  unsigned file_count;
  bool *files;
  int memories_error;
  unsigned memory_count;
  struct memory memories[MAX_MEMORIES];
};

static int find_memory(const struct uring *uring, const char *start, uint64_t length) {
  for (unsigned i = 0; i < uring->memory_count; i++)
    if (uring->memories[i].start <= start && start + length <= uring->memories[i].end)
      return (int)i;
  return -1;
}

static void prepare(struct uring *uring, struct aio_op *op) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&uring->kernel);
  bool writes = op->request->direction == LOHAN_AIO_WRITE;
  unsigned bytes = (unsigned)op->issue_bytes;
  int memory = find_memory(uring, op->memory, op->issue_bytes);
  if (memory >= 0 && writes)
    io_uring_prep_write_fixed(entry, op->fd, op->memory, bytes, op->offset, memory);
  else if (memory >= 0)
    io_uring_prep_read_fixed(entry, op->fd, op->memory, bytes, op->offset, memory);
  else if (writes)
    io_uring_prep_write(entry, op->fd, op->memory, bytes, op->offset);
  else
    io_uring_prep_read(entry, op->fd, op->memory, bytes, op->offset);
  if ((unsigned)op->fd < uring->file_count && uring->files[op->fd])
    io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data(entry, op);
}

static int exchange(struct aio_ring *ring, struct aio_op **batch, unsigned count, struct aio_result *results) {
  struct uring *uring = (struct uring *)ring;
  if (!uring->event_armed) {
    /* A wake-up is a completion like any other: of a read of the eventfd, marked by having no operation. */
    struct io_uring_sqe *entry = io_uring_get_sqe(&uring->kernel);
    io_uring_prep_read(entry, ring->event, &uring->signals, sizeof uring->signals, 0);
    io_uring_sqe_set_data(entry, NULL);
    uring->event_armed = true;
  }
  pthread_mutex_lock(&uring->tables);
  for (unsigned i = 0; i < count; i++)
    prepare(uring, batch[i]);
  pthread_mutex_unlock(&uring->tables);

  unsigned patience = aio_ring_patience(ring, uring->depth);
  int error = io_uring_submit_and_wait(&uring->kernel, patience ? patience : 1);
  bool busy = error == -EAGAIN || error == -EBUSY; /* what was not submitted stays in the ring for the next call */
  if (error < 0 && error != -EINTR && !busy)
    return error;

  struct io_uring_cqe *entry;
  unsigned head, seen = 0;
  int completed = 0;
  io_uring_for_each_cqe(&uring->kernel, head, entry) {
    struct aio_op *op = io_uring_cqe_get_data(entry);
    if (op)
      results[completed++] = (struct aio_result){op, entry->res};
    else
      uring->event_armed = false;
    seen++;
  }
  io_uring_cq_advance(&uring->kernel, seen);
  return busy && !seen ? -EAGAIN : completed;
}

static int add_file(lohan_aio *engine, int fd) {
  struct uring *uring = engine->state;
  if (uring->files_error)
    return uring->files_error;
  if ((unsigned)fd >= uring->file_count)
    return -ENFILE;
  pthread_mutex_lock(&uring->tables);
  int error = io_uring_register_files_update(&uring->kernel, (unsigned)fd, &fd, 1);
  uring->files[fd] = error == 1;
  pthread_mutex_unlock(&uring->tables);
  return error < 0 ? error : 0;
}

static void remove_file(lohan_aio *engine, int fd) {
  struct uring *uring = engine->state;
  int none = -1;
  pthread_mutex_lock(&uring->tables);
  if ((unsigned)fd < uring->file_count && uring->files[fd]) {
    io_uring_register_files_update(&uring->kernel, (unsigned)fd, &none, 1);
    uring->files[fd] = false;
  }
  pthread_mutex_unlock(&uring->tables);
}

/* With `tables` held. */
static int add_piece(struct uring *uring, char *start, uint64_t length) {
  if (uring->memory_count == MAX_MEMORIES)
    return -ENOSPC;
  struct iovec piece = {start, length};
  __u64 tag = 0;
  int error = io_uring_register_buffers_update_tag(&uring->kernel, uring->memory_count, &piece, &tag, 1);
  if (error < 0)
    return error;
  uring->memories[uring->memory_count++] = (struct memory){start, start + length};
  return 0;
}

static int add_memory(lohan_aio *engine, char *start, uint64_t length) {
  struct uring *uring = engine->state;
  int error = uring->memories_error;
  pthread_mutex_lock(&uring->tables);
  for (uint64_t at = 0; at < length && !error; at += MAX_MEMORY_BYTES) {
    uint64_t left = length - at;
    error = add_piece(uring, start + at, left < MAX_MEMORY_BYTES ? left : MAX_MEMORY_BYTES);
  }
  pthread_mutex_unlock(&uring->tables);
  return error;
}

/* An entry without an address is an empty one. */
static int remove_memories(lohan_aio *engine) {
  struct uring *uring = engine->state;
  struct iovec nothing = {NULL, 0};
  __u64 tag = 0;
  int error = 0;
  pthread_mutex_lock(&uring->tables);
  while (uring->memory_count && error >= 0) {
    error = io_uring_register_buffers_update_tag(&uring->kernel, uring->memory_count - 1, &nothing, &tag, 1);
    if (error >= 0)
      uring->memory_count--;
  }
  pthread_mutex_unlock(&uring->tables);
  return error < 0 ? error : 0;
}

/* Without tables the engine still works; callers hear of it from add_file and add_memory. */
static void make_tables(struct uring *uring) {
  struct rlimit limit = {0};
  getrlimit(RLIMIT_NOFILE, &limit); /* the kernel refuses a larger table */
  uring->file_count = limit.rlim_cur < MAX_FILES ? (unsigned)limit.rlim_cur : MAX_FILES;
  uring->files = calloc(uring->file_count, sizeof *uring->files);
  uring->files_error = uring->files ? io_uring_register_files_sparse(&uring->kernel, uring->file_count) : -ENOMEM;
  if (uring->files_error)
    uring->file_count = 0;
  uring->memories_error = io_uring_register_buffers_sparse(&uring->kernel, MAX_MEMORIES);
}

/* IORING_OP_READ came with Linux 5.6. */
static int check_operations(struct uring *uring) {
  struct io_uring_probe *probe = io_uring_get_probe_ring(&uring->kernel);
  if (!probe)
    return -ENOSYS;
  int error = io_uring_opcode_supported(probe, IORING_OP_READ) ? 0 : -ENOSYS;
  io_uring_free_probe(probe);
  return error;
}

static int open_kernel(struct uring *uring) {
  unsigned entries = uring->depth + 1; /* one more for the eventfd */
  /* Completions are reaped by the thread that submitted: the kernel need not interrupt it (Linux 5.19). */
  int error = io_uring_queue_init(entries, &uring->kernel, IORING_SETUP_COOP_TASKRUN);
  if (error == -EINVAL)
    error = io_uring_queue_init(entries, &uring->kernel, 0);
  if (error)
    return error;
  error = check_operations(uring);
  if (error)
    io_uring_queue_exit(&uring->kernel);
  return error;
}

static int open_uring(lohan_aio *engine) {
  struct uring *uring = calloc(1, sizeof *uring);
  if (!uring)
    return -ENOMEM;
  engine->state = uring;
  uring->ring.exchange = exchange;
  uring->depth = engine->depth;
  int error = aio_ring_open(engine);
  if (!error) {
    error = open_kernel(uring);
    if (error)
      aio_ring_close(engine);
  }
  if (error) {
    free(uring);
    return error;
  }
  pthread_mutex_init(&uring->tables, NULL);
  make_tables(uring);
  return 0;
}

static void close_uring(lohan_aio *engine) {
  struct uring *uring = engine->state;
  io_uring_queue_exit(&uring->kernel);
  aio_ring_close(engine);
  pthread_mutex_destroy(&uring->tables);
  free(uring->files);
  free(uring);
}

const struct aio_driver aio_io_uring = {.threads = 1,
                                        .open = open_uring,
                                        .close = close_uring,
                                        .run = aio_ring_run,
                                        .wake = aio_ring_wake,
                                        .add_file = add_file,
                                        .remove_file = remove_file,
                                        .add_memory = add_memory,
                                        .remove_memories = remove_memories};
