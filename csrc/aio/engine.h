/* What the engines share: the queue of operations, and the driver that an engine of some kind supplies. */
#ifndef LOHAN_AIO_ENGINE_H
#define LOHAN_AIO_ENGINE_H

#include "lohan_aio.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

/* A piece of a segment: what is left of it to transfer. */
struct aio_op {
  struct aio_op *next;
  lohan_aio_request *request;
  char *memory;
  uint64_t offset;
  uint64_t length;
  uint64_t issue_bytes; /* how much to ask of the kernel now: `length`, or less to provoke a short transfer */
  int fd;
  unsigned stalls; /* attempts in a row that moved nothing */
  unsigned slot;   /* place among the operations in flight (ring.c) */
};

struct lohan_aio_request {
  lohan_aio *engine;
  int direction;
  unsigned references; /* the caller's, and the engine's until it is done */
  uint64_t bytes;
  size_t unfinished;
  lohan_aio_failure failure;
  pthread_cond_t finished;
  struct aio_op ops[];
};

struct aio_driver {
  unsigned threads; /* how many to run, 0 for one per unit of depth */
  int (*open)(lohan_aio *engine);
  void (*close)(lohan_aio *engine);
  void (*run)(lohan_aio *engine);  /* a thread of the engine: until closing, and nothing is left to do */
  void (*wake)(lohan_aio *engine); /* operations were queued, or the engine is closing; called with the lock held */
  int (*add_file)(lohan_aio *engine, int fd);
  void (*remove_file)(lohan_aio *engine, int fd);
  int (*add_memory)(lohan_aio *engine, char *start, uint64_t length);
  int (*remove_memories)(lohan_aio *engine);
};

struct aio_fault {
  uint64_t after;
  uint64_t times;
  int error;
  uint64_t short_bytes;
};

struct lohan_aio {
  const struct aio_driver *driver;
  void *state; /* the driver's own */
  unsigned depth;
  uint64_t block_bytes;
  uint64_t alignment;
  unsigned thread_count;
  pthread_t *threads;

  pthread_mutex_t lock; /* guards all that follows, and the requests */
  pthread_cond_t work;  /* the thread pool waits here for operations */
  struct aio_op *first;
  struct aio_op **last;
  unsigned references; /* the caller's, and one for each request that is not yet released */
  bool closing;
  bool pause; /* the kernel was out of resources: give it a moment before asking again */
  int broken; /* the errno that ended the conversation with the kernel: every operation fails with it */
  uint64_t bytes[2];
  struct aio_fault faults[3];
};

extern const struct aio_driver aio_threads;
extern const struct aio_driver aio_libaio;
#ifdef LOHAN_HAVE_LIBURING
extern const struct aio_driver aio_io_uring;
#endif

/* The fault that a test wants now in this direction, or NULL. With the lock held. */
const struct aio_fault *aio_next_fault(lohan_aio *engine, int direction);

/* Next operation to issue, or NULL. With the lock held. */
struct aio_op *aio_take(lohan_aio *engine);

/* Account for the result of an operation, bytes or a negative errno: it is finished, or goes back to the queue for
 * what is left of it. With the lock held. */
void aio_complete(lohan_aio *engine, struct aio_op *op, int64_t result);

/* Sleep a millisecond if `pause` was set, and reset it. With the lock held, which is released meanwhile. */
void aio_pause(lohan_aio *engine);

#endif
