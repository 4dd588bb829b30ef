/* Linux native AIO through its system calls, as io_submit(2) describes them: no library is needed. */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct native {
  struct aio_ring ring;
  aio_context_t context;
  unsigned depth;
  struct iocb *blocks;
  struct iocb **pointers;
  struct io_event *events;
};

static void describe(struct iocb *block, const struct native *native, struct aio_op *op) {
  *block = (struct iocb){
      .aio_data = (uintptr_t)op,
      .aio_lio_opcode = op->request->direction == LOHAN_AIO_WRITE ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
      .aio_fildes = (uint32_t)op->fd,
      .aio_buf = (uintptr_t)op->memory,
      .aio_nbytes = op->issue_bytes,
      .aio_offset = (int64_t)op->offset,
      .aio_flags = IOCB_FLAG_RESFD, /* completions and wake-ups signal one eventfd: one place to wait */
      .aio_resfd = (uint32_t)native->ring.event,
  };
}

static unsigned submit(struct native *native, struct aio_op **batch, unsigned count, struct aio_result *results) {
  unsigned refused = 0;
  for (unsigned i = 0; i < count; i++) {
    describe(&native->blocks[i], native, batch[i]);
    native->pointers[i] = &native->blocks[i];
  }
  for (unsigned sent = 0; sent < count;) {
    long accepted = syscall(SYS_io_submit, native->context, (long)(count - sent), native->pointers + sent);
    if (accepted > 0)
      sent += (unsigned)accepted;
    else /* an error is about the first block of those passed */
      results[refused++] = (struct aio_result){batch[sent++], accepted < 0 ? -errno : -EAGAIN};
  }
  return refused;
}

static int exchange(struct aio_ring *ring, struct aio_op **batch, unsigned count, struct aio_result *results) {
  struct native *native = (struct native *)ring;
  unsigned completed = submit(native, batch, count, results);
  if (completed)
    return (int)completed;
  long patience = aio_ring_patience(ring, native->depth);
  eventfd_t signals;
  while (!patience && eventfd_read(ring->event, &signals))
    if (errno != EINTR)
      return -errno;
  struct timespec now = {0};
  long events =
      syscall(SYS_io_getevents, native->context, patience, (long)native->depth, native->events, patience ? NULL : &now);
  if (events < 0)
    return errno == EINTR ? 0 : -errno;
  for (long i = 0; i < events; i++)
    results[i] = (struct aio_result){(struct aio_op *)(uintptr_t)native->events[i].data, native->events[i].res};
  return (int)events;
}

static void release(lohan_aio *engine) {
  struct native *native = engine->state;
  free(native->blocks);
  free(native->pointers);
  free(native->events);
  free(native);
}

static int open_native(lohan_aio *engine) {
  struct native *native = calloc(1, sizeof *native);
  if (!native)
    return -ENOMEM;
  engine->state = native;
  native->ring.exchange = exchange;
  native->depth = engine->depth;
  native->blocks = calloc(engine->depth, sizeof *native->blocks);
  native->pointers = calloc(engine->depth, sizeof(struct iocb *));
  native->events = calloc(engine->depth, sizeof *native->events);
  int error = native->blocks && native->pointers && native->events ? aio_ring_open(engine) : -ENOMEM;
  if (!error && syscall(SYS_io_setup, (long)engine->depth, &native->context)) {
    error = -errno;
    aio_ring_close(engine);
  }
  if (error)
    release(engine);
  return error;
}

static void close_native(lohan_aio *engine) {
  struct native *native = engine->state;
  syscall(SYS_io_destroy, native->context);
  aio_ring_close(engine);
  release(engine);
}

const struct aio_driver aio_libaio = {
    .threads = 1, .open = open_native, .close = close_native, .run = aio_ring_run, .wake = aio_ring_wake};
