/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_import.c - opening the memory and the events of an engine that plays along with the simulated GPU.
 * Each call looks only at what it is given and keeps nothing in the device, so that the control thread
 * and the lane need no lock between them.
 *
 * What comes in is hostile: a descriptor must be a memfd of ordinary pages that cannot shrink, since a
 * mapping that loses its end kills whoever touches it.
 */
#include "gpu/sim_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "gpu/sim_handles.h"

struct device_memory {
	void *base;
	uint64_t bytes;
};

struct device_event {
	struct sim_event_words *words; /* a mapping; every word is hostile */
};

void *sim_device_address(void *host)
{
	return (void *)((uintptr_t)host + SIM_ADDRESS_OFFSET);
}

bool sim_is_device_address(const void *address)
{
	return ((uintptr_t)address & SIM_ADDRESS_OFFSET) != 0;
}

bool sim_event_pending(const struct device_event *event)
{
	return atomic_load_explicit(&event->words->state, memory_order_acquire) ==
	       SIM_EVENT_PENDING;
}

static int refuse(char *err, const char *line, int errno_value)
{
	(void)snprintf(err, DEVICE_ERR_BYTES, "%s", line);
	return -errno_value;
}

static int memfd_check(int fd, uint64_t *ret_bytes, char *err)
{
	int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;

	if (seals < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC || fstat(fd, &st) < 0)
		return refuse(err, "not a memfd of ordinary pages", EINVAL);
	if (!(seals & F_SEAL_SHRINK))
		return refuse(err, "the memfd is not sealed against shrinking (F_SEAL_SHRINK)",
			      EINVAL);
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return refuse(err, "the memfd is sealed against writing", EINVAL);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static int memfd_map(int fd, uint64_t bytes, void **ret_base, char *err)
{
	void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (base == MAP_FAILED) {
		int r = errno;

		(void)snprintf(err, DEVICE_ERR_BYTES, "cannot map %llu bytes: %s",
			       (unsigned long long)bytes, strerror(r));
		return r == ENOMEM ? -ENOMEM : -EINVAL;
	}
	*ret_base = base;
	return 0;
}

/* The name is looked at before the file is opened: opening a device or a pipe may do things. */
static int handle_open(const struct sim_handle *h, int *ret_fd, char *err)
{
	char path[64], link[64];
	struct stat st;
	ssize_t n;
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/%d", h->pid);
	if (stat(path, &st) < 0)
		return refuse(err, "the handle names no process", EINVAL);
	if (st.st_uid != geteuid())
		return refuse(err, "the handle names a process of another user", EINVAL);
	(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", h->pid, h->fd);
	n = readlink(path, link, sizeof(link));
	if (n < 0)
		return refuse(err, "the handle names no open file, or none that may be seen",
			      EINVAL);
	if (n < 7 || memcmp(link, "/memfd:", 7) != 0)
		return refuse(err, "the handle does not name a memfd", EINVAL);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0) {
		int r = errno;

		(void)snprintf(err, DEVICE_ERR_BYTES, "cannot open what the handle names: %s",
			       strerror(r));
		return r == ENOMEM || r == EMFILE || r == ENFILE ? -ENOMEM : -EINVAL;
	}
	*ret_fd = fd;
	return 0;
}

static int handle_parse(const uint8_t bytes[DEVICE_HANDLE_BYTES], uint32_t magic,
			struct sim_handle *ret_handle, char *err)
{
	static const uint8_t zero[sizeof(ret_handle->reserved)];

	memcpy(ret_handle, bytes, sizeof(*ret_handle));
	if (ret_handle->magic != magic || ret_handle->pid <= 0 || ret_handle->fd < 0 ||
	    memcmp(ret_handle->reserved, zero, sizeof(zero)) != 0)
		return refuse(err, "not a handle of the simulated GPU", EINVAL);
	return 0;
}

/* A thread's id opens its process's files as well. */
static bool is_this_process(int32_t pid)
{
	char path[64];

	(void)snprintf(path, sizeof(path), "/proc/self/task/%d", pid);
	return access(path, F_OK) == 0;
}

/* Takes nothing: fd stays the caller's. */
static int memory_map(int fd, uint64_t bytes, struct device_memory **ret_memory, char *err)
{
	struct device_memory *m;
	uint64_t real_bytes = 0;
	int r = memfd_check(fd, &real_bytes, err);

	if (r < 0)
		return r;
	if (bytes == 0 || bytes > SIZE_MAX / 2u)
		return refuse(err, "an allocation of no size", EINVAL);
	if (real_bytes < bytes) {
		(void)snprintf(err, DEVICE_ERR_BYTES,
			       "the allocation has %llu bytes, not the %llu claimed",
			       (unsigned long long)real_bytes, (unsigned long long)bytes);
		return -ERANGE;
	}
	m = calloc(1, sizeof(*m));
	if (!m)
		return refuse(err, "out of memory", ENOMEM);
	m->bytes = bytes;
	r = memfd_map(fd, bytes, &m->base, err);
	if (r < 0) {
		free(m);
		return r;
	}
	*ret_memory = m;
	return 0;
}

static int sim_memory_open(struct device *d, const struct device_import *im,
			   struct device_memory **ret_memory, void **ret_base, char *err)
{
	int fd = im->fd, r;

	if (memcmp(im->uuid, d->facts->uuid, DEVICE_UUID_BYTES) != 0)
		return refuse(err, "the memory is of another device", ENODEV);
	if (im->type == DEVICE_MEMORY_IPC_HANDLE) {
		struct sim_handle h;

		r = handle_parse(im->handle, SIM_MEMORY_MAGIC, &h, err);
		if (r < 0)
			return r;
		if (is_this_process(h.pid))
			return refuse(err, "the handle names memory of this very process", EINVAL);
		r = handle_open(&h, &fd, err);
		if (r < 0)
			return r;
	} else if (im->type != DEVICE_MEMORY_POSIX_FD) {
		return refuse(err, "unknown type of memory", EINVAL);
	}
	r = memory_map(fd, im->allocation_bytes, ret_memory, err);
	if (im->type == DEVICE_MEMORY_IPC_HANDLE)
		(void)close(fd);
	if (r == 0)
		*ret_base = sim_device_address((*ret_memory)->base);
	return r;
}

static void sim_memory_close(struct device *d, struct device_memory *memory)
{
	(void)d;
	if (!memory)
		return;
	(void)munmap(memory->base, memory->bytes);
	free(memory);
}

/* The mark by which the lane's side sees that the call was not forgotten. */
static int sim_region_open(struct device *d, struct device_region *region)
{
	if (!sim_is_device_address(region->base))
		return -EINVAL;
	region->device_private = d;
	return 0;
}

static void sim_region_close(struct device *d, struct device_region *region)
{
	(void)d;
	region->device_private = NULL;
}

static int sim_event_open(struct device *d, const uint8_t handle[DEVICE_HANDLE_BYTES],
			  struct device_event **ret_event, char *err)
{
	struct device_event *e;
	struct sim_handle h;
	uint64_t bytes = 0;
	void *base = NULL;
	int fd = -1, r = handle_parse(handle, SIM_EVENT_MAGIC, &h, err);

	(void)d;
	if (r == 0)
		r = handle_open(&h, &fd, err);
	if (r < 0)
		return r;
	r = memfd_check(fd, &bytes, err);
	if (r == 0 && bytes != SIM_EVENT_BYTES)
		r = refuse(err, "an event's memfd has 4096 bytes", EINVAL);
	if (r == 0)
		r = memfd_map(fd, SIM_EVENT_BYTES, &base, err);
	(void)close(fd);
	if (r < 0)
		return r;
	e = malloc(sizeof(*e));
	if (!e) {
		(void)munmap(base, SIM_EVENT_BYTES);
		return refuse(err, "out of memory", ENOMEM);
	}
	e->words = base;
	*ret_event = e;
	return 0;
}

static void sim_event_close(struct device *d, struct device_event *event)
{
	(void)d;
	if (!event)
		return;
	(void)munmap(event->words, SIM_EVENT_BYTES);
	free(event);
}

static int sim_event_record(struct device *d, struct device_event *event)
{
	int r = d->ops->dead(d);

	if (r < 0)
		return r;
	(void)atomic_fetch_add_explicit(&event->words->records, 1, memory_order_release);
	return 0;
}

const struct device_import_ops sim_import_ops = {
	.memory_open = sim_memory_open,
	.memory_close = sim_memory_close,
	.region_open = sim_region_open,
	.region_close = sim_region_close,
	.event_open = sim_event_open,
	.event_close = sim_event_close,
	.event_record = sim_event_record,
};
