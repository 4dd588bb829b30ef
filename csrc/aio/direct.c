/* What O_DIRECT asks of a file. The system call is made directly: older C libraries lack the fields. */
#define _GNU_SOURCE
#include "lohan_aio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int lohan_aio_direct_alignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx facts = {0};
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts))
    return errno == ENOSYS ? 0 : -errno;
  if (!(facts.stx_mask & STATX_DIOALIGN))
    return 0;
  if (!facts.stx_dio_offset_align)
    return -EOPNOTSUPP;
  uint32_t offset = facts.stx_dio_offset_align, memory = facts.stx_dio_mem_align;
  return (int)(offset > memory ? offset : memory);
#else
  (void)fd;
  return 0;
#endif
}
