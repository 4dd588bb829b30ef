#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

enum { MAX_DEPTH = 4096, MAX_BLOCK_BYTES = 1 << 30, STACK_BYTES = 256 << 10 };

static const struct aio_driver *find_driver(int kind) {
  switch (kind) {
  case LOHAN_AIO_THREADS:
    return &aio_threads;
  case LOHAN_AIO_LIBAIO:
    return &aio_libaio;
#ifdef LOHAN_HAVE_LIBURING
  case LOHAN_AIO_IO_URING:
    return &aio_io_uring;
#endif
  default:
    return NULL;
  }
}

int lohan_aio_built(int kind) { return find_driver(kind) != NULL; }

int lohan_aio_probe(int kind) {
  int error = 0;
  lohan_aio *engine = lohan_aio_open(kind, 1, 4096, 4096, &error);
  if (engine)
    lohan_aio_close(engine);
  return error;
}

static void drop_engine(lohan_aio *engine) {
  pthread_mutex_lock(&engine->lock);
  bool last = --engine->references == 0;
  pthread_mutex_unlock(&engine->lock);
  if (!last)
    return;
  pthread_mutex_destroy(&engine->lock);
  pthread_cond_destroy(&engine->work);
  free(engine->threads);
  free(engine);
}

static void *thread_main(void *argument) {
  lohan_aio *engine = argument;
  engine->driver->run(engine);
  return NULL;
}

/* Signals stay with the threads of the host program: a handler there must not run on, or interrupt, these. */
static int start_threads(lohan_aio *engine, unsigned count) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int error = 0;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  while (engine->thread_count < count && !error) {
    error = pthread_create(&engine->threads[engine->thread_count], &attributes, thread_main, engine);
    if (!error)
      pthread_setname_np(engine->threads[engine->thread_count++], "lohan-aio");
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return -error;
}

static void stop_threads(lohan_aio *engine) {
  pthread_mutex_lock(&engine->lock);
  engine->closing = true;
  engine->driver->wake(engine);
  pthread_mutex_unlock(&engine->lock);
  for (unsigned i = 0; i < engine->thread_count; i++)
    pthread_join(engine->threads[i], NULL);
}

lohan_aio *lohan_aio_open(int kind, unsigned depth, uint64_t block_bytes, uint64_t alignment, int *error) {
  const struct aio_driver *driver = find_driver(kind);
  if (!driver) {
    *error = -EOPNOTSUPP;
    return NULL;
  }
  if (!depth || depth > MAX_DEPTH || !alignment || (alignment & (alignment - 1)) || !block_bytes ||
      block_bytes % alignment || block_bytes > MAX_BLOCK_BYTES) {
    *error = -EINVAL;
    return NULL;
  }
  unsigned threads = driver->threads ? driver->threads : depth;
  lohan_aio *engine = calloc(1, sizeof *engine);
  pthread_t *handles = calloc(threads, sizeof *handles);
  if (!engine || !handles) {
    free(engine);
    free(handles);
    *error = -ENOMEM;
    return NULL;
  }
  engine->driver = driver;
  engine->depth = depth;
  engine->block_bytes = block_bytes;
  engine->alignment = alignment;
  engine->threads = handles;
  engine->last = &engine->first;
  engine->references = 1;
  pthread_mutex_init(&engine->lock, NULL);
  pthread_cond_init(&engine->work, NULL);
  *error = driver->open(engine);
  if (!*error) {
    *error = start_threads(engine, threads);
    if (!*error)
      return engine;
    stop_threads(engine);
    driver->close(engine);
  }
  drop_engine(engine);
  return NULL;
}

void lohan_aio_close(lohan_aio *engine) {
  stop_threads(engine);
  engine->driver->close(engine);
  drop_engine(engine);
}

int lohan_aio_add_file(lohan_aio *engine, int fd) {
  return engine->driver->add_file ? engine->driver->add_file(engine, fd) : -EOPNOTSUPP;
}

void lohan_aio_remove_file(lohan_aio *engine, int fd) {
  if (engine->driver->remove_file)
    engine->driver->remove_file(engine, fd);
}

int lohan_aio_add_memory(lohan_aio *engine, uintptr_t address, uint64_t length) {
  pthread_mutex_lock(&engine->lock);
  const struct aio_fault *fault = aio_next_fault(engine, LOHAN_AIO_REGISTER);
  int error = fault ? -fault->error : 0;
  pthread_mutex_unlock(&engine->lock);
  if (error)
    return error;
  return engine->driver->add_memory ? engine->driver->add_memory(engine, (char *)address, length) : -EOPNOTSUPP;
}

int lohan_aio_remove_memories(lohan_aio *engine) {
  return engine->driver->remove_memories ? engine->driver->remove_memories(engine) : 0;
}

lohan_aio_request *lohan_aio_submit(lohan_aio *engine, int direction, const lohan_aio_segment *segments, size_t count,
                                    int *error) {
  if (direction != LOHAN_AIO_READ && direction != LOHAN_AIO_WRITE) {
    *error = -EINVAL;
    return NULL;
  }
  size_t pieces = 0;
  for (size_t i = 0; i < count; i++)
    pieces += (segments[i].length + engine->block_bytes - 1) / engine->block_bytes;
  lohan_aio_request *request = calloc(1, sizeof *request + pieces * sizeof request->ops[0]);
  if (!request) {
    *error = -ENOMEM;
    return NULL;
  }
  request->engine = engine;
  request->direction = direction;
  request->unfinished = pieces;
  request->references = pieces ? 2 : 1;
  pthread_cond_init(&request->finished, NULL);

  struct aio_op *op = request->ops;
  for (size_t i = 0; i < count; i++) {
    for (uint64_t at = 0; at < segments[i].length; at += op++->length) {
      uint64_t left = segments[i].length - at;
      op->next = op + 1;
      op->request = request;
      op->memory = (char *)segments[i].address + at;
      op->offset = segments[i].offset + at;
      op->length = left < engine->block_bytes ? left : engine->block_bytes;
      op->fd = segments[i].fd;
    }
    request->bytes += segments[i].length;
  }

  pthread_mutex_lock(&engine->lock);
  *error = engine->closing ? -ESHUTDOWN : -engine->broken;
  if (!*error) {
    engine->references++;
    if (pieces) {
      op[-1].next = NULL;
      *engine->last = request->ops;
      engine->last = &op[-1].next;
      engine->driver->wake(engine);
    }
  }
  pthread_mutex_unlock(&engine->lock);
  if (*error) {
    pthread_cond_destroy(&request->finished);
    free(request);
    return NULL;
  }
  return request;
}

int lohan_aio_wait(lohan_aio_request *request, lohan_aio_failure *failure) {
  pthread_mutex_lock(&request->engine->lock);
  while (request->unfinished)
    pthread_cond_wait(&request->finished, &request->engine->lock);
  *failure = request->failure;
  pthread_mutex_unlock(&request->engine->lock);
  return failure->error;
}

int lohan_aio_done(lohan_aio_request *request) {
  pthread_mutex_lock(&request->engine->lock);
  int done = request->unfinished == 0;
  pthread_mutex_unlock(&request->engine->lock);
  return done;
}

void lohan_aio_release(lohan_aio_request *request) {
  lohan_aio *engine = request->engine;
  pthread_mutex_lock(&engine->lock);
  bool last = --request->references == 0;
  pthread_mutex_unlock(&engine->lock);
  if (!last)
    return;
  pthread_cond_destroy(&request->finished);
  free(request);
  drop_engine(engine);
}

uint64_t lohan_aio_bytes(lohan_aio *engine, int direction) {
  pthread_mutex_lock(&engine->lock);
  uint64_t bytes = engine->bytes[direction];
  pthread_mutex_unlock(&engine->lock);
  return bytes;
}

void lohan_aio_inject(lohan_aio *engine, int direction, uint64_t after, uint64_t times, int error,
                      uint64_t short_bytes) {
  pthread_mutex_lock(&engine->lock);
  engine->faults[direction] = (struct aio_fault){after, times, error, short_bytes};
  pthread_mutex_unlock(&engine->lock);
}
