/* The loop that io_uring and native AIO share: one thread keeps up to `depth` operations with the kernel. */
#ifndef LOHAN_AIO_RING_H
#define LOHAN_AIO_RING_H

#include "engine.h"

struct aio_result {
  struct aio_op *op;
  int64_t result;
};

/* How the loop talks to one kernel interface. `exchange` issues a batch and waits until something completes or `event`
 * (an eventfd, in blocking mode) is signalled; it stores what completed and returns how many; or -EAGAIN, to be
 * called again in a moment; or another negative errno, which ends the conversation. Room is given for `depth` results.
 */
struct aio_ring {
  int (*exchange)(struct aio_ring *ring, struct aio_op **batch, unsigned count, struct aio_result *results);
  int event;
  bool asleep; /* has room and would like to hear of new operations; guarded by the engine's lock */
  unsigned in_flight;
  struct aio_op **flying;
  struct aio_op **batch;
  struct aio_result *results;
};

/* `engine->state` must point to a struct that begins with its aio_ring. */
int aio_ring_open(lohan_aio *engine);
void aio_ring_close(lohan_aio *engine);
void aio_ring_run(lohan_aio *engine);
void aio_ring_wake(lohan_aio *engine);

/* How many completions `exchange` should wait for, at most. With all of the depth in use, new operations are no news:
 * several completions at a time save wake-ups. 0: for one, or for the event. */
unsigned aio_ring_patience(const struct aio_ring *ring, unsigned depth);

#endif
