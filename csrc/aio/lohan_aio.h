/* Asynchronous I/O on files: one interface over io_uring, Linux native AIO and a pool of threads.
 *
 * A request is a vector of segments, read or written together. It is cut into operations of at most `block_bytes`, of
 * which at most `depth` are with the kernel at a time, in the order of submission. Threads of the engine submit and
 * reap them, issue the rest of a short transfer again, and retry after EINTR and EAGAIN; callers only queue and wait.
 *
 * Any function may be called from any thread. Functions that return int return 0 or a negative errno, unless they say
 * otherwise. The Python binding is generated from this file: preprocessor lines are dropped, declarations are kept. */
#ifndef LOHAN_AIO_H
#define LOHAN_AIO_H

#include <stddef.h>
#include <stdint.h>

typedef struct lohan_aio lohan_aio;
typedef struct lohan_aio_request lohan_aio_request;

enum lohan_aio_kind { LOHAN_AIO_THREADS, LOHAN_AIO_LIBAIO, LOHAN_AIO_IO_URING };

enum lohan_aio_direction { LOHAN_AIO_READ, LOHAN_AIO_WRITE, LOHAN_AIO_REGISTER };

typedef struct {
  int fd;
  uint64_t offset;
  uint64_t length;
  uintptr_t address;
} lohan_aio_segment;

/* What went wrong first in a request: a positive errno, and where. ENODATA: the file ends before the segment does. */
typedef struct {
  int error;
  int fd;
  uint64_t offset;
} lohan_aio_failure;

/* Whether an engine of this kind was compiled in (1 or 0), and whether one opens on this machine. */
int lohan_aio_built(int kind);
int lohan_aio_probe(int kind);

/* Open an engine; NULL on failure with the negative errno in *error. Offsets, lengths and addresses of segments should
 * be multiples of `alignment`, a power of two: what O_DIRECT asks of the files. */
lohan_aio *lohan_aio_open(int kind, unsigned depth, uint64_t block_bytes, uint64_t alignment, int *error);

/* Wait for all requests, stop the threads and let go of the kernel's resources. Requests stay valid until released;
 * the engine itself must not be used again. */
void lohan_aio_close(lohan_aio *engine);

/* Tell the kernel about a file or a piece of memory ahead of its use, where the engine can (-EOPNOTSUPP where not).
 * Only speed depends on it. A file must be removed before its descriptor is closed; memory must stay mapped until
 * all of it is removed again, with none of its transfers in flight, or the engine is closed. */
int lohan_aio_add_file(lohan_aio *engine, int fd);
void lohan_aio_remove_file(lohan_aio *engine, int fd);
int lohan_aio_add_memory(lohan_aio *engine, uintptr_t address, uint64_t length);
int lohan_aio_remove_memories(lohan_aio *engine);

/* Queue a request (direction: read or write). The memory must stay valid until the request is done, whether or not it
 * was released. NULL with the negative errno in *error if it could not be queued. */
lohan_aio_request *lohan_aio_submit(lohan_aio *engine, int direction, const lohan_aio_segment *segments, size_t count,
                                    int *error);

/* Wait until the kernel has let go of every segment; returns failure->error. `done` tells (1 or 0) without waiting.
 * If the kernel refuses to be asked at all (which no drive makes it do), every request fails at once, and it may not
 * have let go yet: there is nobody to hear it from, and closing an io_uring does not wait for what it has in flight. */
int lohan_aio_wait(lohan_aio_request *request, lohan_aio_failure *failure);
int lohan_aio_done(lohan_aio_request *request);
void lohan_aio_release(lohan_aio_request *request);

/* Bytes of the requests in that direction that are done and did not fail. */
uint64_t lohan_aio_bytes(lohan_aio *engine, int direction);

/* What O_DIRECT asks of this file (statx), in bytes: 0 if the kernel does not tell, -EOPNOTSUPP if it refuses. */
int lohan_aio_direct_alignment(int fd);

/* For tests: after `after` operations in that direction, let the next `times` fail with the positive errno `error`
 * or, if that is 0, transfer at most `short_bytes`, rounded down to the alignment. */
void lohan_aio_inject(lohan_aio *engine, int direction, uint64_t after, uint64_t times, int error,
                      uint64_t short_bytes);

#endif
