/* The queue of operations: what is issued next, and what a result means. */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* At a millisecond's pause each, an operation that the kernel has no resources for is given up after a second. */
enum { MAX_STALLS = 1000, PAUSE_NANOSECONDS = 1000000 };

const struct aio_fault *aio_next_fault(lohan_aio *engine, int direction) {
  struct aio_fault *fault = &engine->faults[direction];
  if (!fault->times)
    return NULL;
  if (fault->after) {
    fault->after--;
    return NULL;
  }
  fault->times--;
  return fault;
}

static void finish(lohan_aio *engine, struct aio_op *op, int error) {
  lohan_aio_request *request = op->request;
  if (error && !request->failure.error)
    request->failure = (lohan_aio_failure){error, op->fd, op->offset};
  if (--request->unfinished)
    return;
  if (!request->failure.error)
    engine->bytes[request->direction] += request->bytes;
  pthread_cond_broadcast(&request->finished);
  if (--request->references)
    return;
  /* The caller let go of it long ago. The engine outlives this: closing it waits for this thread. */
  pthread_cond_destroy(&request->finished);
  free(request);
  engine->references--;
}

struct aio_op *aio_take(lohan_aio *engine) {
  struct aio_op *op;
  while ((op = engine->first)) {
    engine->first = op->next;
    if (!engine->first)
      engine->last = &engine->first;
    if (engine->broken || op->request->failure.error) {
      finish(engine, op, engine->broken);
      continue;
    }
    op->issue_bytes = op->length;
    const struct aio_fault *fault = aio_next_fault(engine, op->request->direction);
    if (!fault)
      return op;
    if (!fault->error) {
      if (fault->short_bytes < op->length)
        op->issue_bytes = fault->short_bytes & ~(engine->alignment - 1);
      return op;
    }
    aio_complete(engine, op, -fault->error);
  }
  return NULL;
}

static void put_back(lohan_aio *engine, struct aio_op *op) {
  op->next = engine->first;
  engine->first = op;
  if (!op->next)
    engine->last = &op->next;
}

void aio_complete(lohan_aio *engine, struct aio_op *op, int64_t result) {
  if (result == -EAGAIN)
    engine->pause = true;
  else if (result < 0 && result != -EINTR) {
    finish(engine, op, (int)-result);
    return;
  }
  if (result == 0 && op->issue_bytes && op->request->direction == LOHAN_AIO_READ) {
    finish(engine, op, ENODATA);
    return;
  }
  /* O_DIRECT cannot continue from the middle of a sector: the odd bytes of a short transfer are transferred again. */
  uint64_t moved = result > 0 ? (uint64_t)result : 0;
  if (moved != op->length)
    moved &= ~(engine->alignment - 1);
  op->memory += moved;
  op->offset += moved;
  op->length -= moved;
  if (!op->length) {
    finish(engine, op, 0);
    return;
  }
  op->stalls = moved ? 0 : op->stalls + 1;
  if (op->stalls == MAX_STALLS) {
    int direction = op->request->direction;
    finish(engine, op, result < 0 ? (int)-result : direction == LOHAN_AIO_READ ? ENODATA : EIO);
    return;
  }
  put_back(engine, op);
}

void aio_pause(lohan_aio *engine) {
  if (!engine->pause)
    return;
  engine->pause = false;
  const struct timespec moment = {.tv_nsec = PAUSE_NANOSECONDS};
  pthread_mutex_unlock(&engine->lock);
  nanosleep(&moment, NULL);
  pthread_mutex_lock(&engine->lock);
}
