/* The portable engine: a pool of threads, one per operation in flight, that call pread and pwrite. */
#include "engine.h"

#include <errno.h>
#include <unistd.h>

static int open_pool(lohan_aio *engine) {
  (void)engine;
  return 0;
}

static void close_pool(lohan_aio *engine) { (void)engine; }

static void wake(lohan_aio *engine) { pthread_cond_broadcast(&engine->work); }

static int64_t transfer(const struct aio_op *op) {
  ssize_t result = op->request->direction == LOHAN_AIO_WRITE
                       ? pwrite(op->fd, op->memory, op->issue_bytes, (off_t)op->offset)
                       : pread(op->fd, op->memory, op->issue_bytes, (off_t)op->offset);
  return result < 0 ? -errno : result;
}

static void run(lohan_aio *engine) {
  pthread_mutex_lock(&engine->lock);
  for (;;) {
    aio_pause(engine);
    struct aio_op *op = aio_take(engine);
    if (!op && engine->pause)
      continue;
    if (!op && engine->closing)
      break;
    if (!op) {
      pthread_cond_wait(&engine->work, &engine->lock);
      continue;
    }
    pthread_mutex_unlock(&engine->lock);
    int64_t result = transfer(op);
    pthread_mutex_lock(&engine->lock);
    aio_complete(engine, op, result);
  }
  pthread_mutex_unlock(&engine->lock);
}

const struct aio_driver aio_threads = {.open = open_pool, .close = close_pool, .run = run, .wake = wake};
