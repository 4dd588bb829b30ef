#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

int aio_ring_open(lohan_aio *engine) {
  struct aio_ring *ring = engine->state;
  ring->flying = calloc(engine->depth, sizeof(struct aio_op *));
  ring->batch = calloc(engine->depth, sizeof(struct aio_op *));
  ring->results = calloc(engine->depth, sizeof *ring->results);
  ring->event = eventfd(0, EFD_CLOEXEC);
  int error = ring->event < 0 ? -errno : 0;
  if (!ring->flying || !ring->batch || !ring->results)
    error = -ENOMEM;
  if (error)
    aio_ring_close(engine);
  return error;
}

void aio_ring_close(lohan_aio *engine) {
  struct aio_ring *ring = engine->state;
  if (ring->event >= 0)
    close(ring->event);
  free(ring->flying);
  free(ring->batch);
  free(ring->results);
}

void aio_ring_wake(lohan_aio *engine) {
  struct aio_ring *ring = engine->state;
  if (!ring->asleep)
    return;
  ring->asleep = false;
  /* Cannot fail: the counter is far from its limit, because it is only raised once per sleep. */
  eventfd_write(ring->event, 1);
}

unsigned aio_ring_patience(const struct aio_ring *ring, unsigned depth) {
  return ring->in_flight == depth ? (depth + 7) / 8 : 0;
}

/* With the lock held: what fits beside the operations in flight. */
static unsigned collect(lohan_aio *engine, struct aio_ring *ring) {
  unsigned count = 0;
  struct aio_op *op;
  while (ring->in_flight < engine->depth && (op = aio_take(engine))) {
    op->slot = ring->in_flight;
    ring->flying[ring->in_flight++] = op;
    ring->batch[count++] = op;
  }
  return count;
}

/* With the lock held. */
static void land(lohan_aio *engine, struct aio_ring *ring, struct aio_op *op, int64_t result) {
  struct aio_op *moved = ring->flying[--ring->in_flight];
  moved->slot = op->slot;
  ring->flying[op->slot] = moved;
  aio_complete(engine, op, result);
}

void aio_ring_run(lohan_aio *engine) {
  struct aio_ring *ring = engine->state;
  pthread_mutex_lock(&engine->lock);
  for (;;) {
    aio_pause(engine);
    unsigned count = collect(engine, ring);
    if (!ring->in_flight && engine->pause)
      continue;
    if (!ring->in_flight && engine->closing)
      break;
    ring->asleep = ring->in_flight < engine->depth;
    pthread_mutex_unlock(&engine->lock);
    int completed = ring->exchange(ring, ring->batch, count, ring->results);
    pthread_mutex_lock(&engine->lock);
    ring->asleep = false;
    for (int i = 0; i < completed; i++)
      land(engine, ring, ring->results[i].op, ring->results[i].result);
    if (completed == -EAGAIN) {
      engine->pause = true;
    } else if (completed < 0) {
      engine->broken = -completed;
      while (ring->in_flight)
        land(engine, ring, ring->flying[0], completed);
      collect(engine, ring); /* fails what is queued; from now on nothing can be */
      break;
    }
  }
  pthread_mutex_unlock(&engine->lock);
}
