/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_internal.h - what the files of the fake daemon share.  One thread owns the connection, the rings
 * and the blocks; the test talks to it through the atomics and poke_fd.
 */
#ifndef SKVCD_TESTS_LIB_FAKE_INTERNAL_H
#define SKVCD_TESTS_LIB_FAKE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/abi.h"
#include "ipc/ctl_msg.h"
#include "ipc/ring.h"
#include "tests/lib/fake_daemon.h"

#define BLOCKS_MAX 512u
#define NS_MAX 8u
#define ARENAS_MAX 16u
#define REGIONS_MAX 64u /* regions, allocations and events */
#define MEMORIES_MAX 32u
#define LEASES_MAX 16u
#define LEASE_BLOCKS_MAX 64u
#define HELD_MAX 8192u

struct fake_block {
	struct skvc_abi_key key;
	uint8_t *raw; /* owned; NULL: free entry */
	uint64_t bytes;
};

struct fake_ns {
	uint32_t block_tokens;
	uint32_t segments_count;
	uint64_t block_bytes;
};

struct fake_arena {
	uint8_t *base; /* NULL: free entry */
	uint64_t bytes;
};

enum fake_region_kind { FAKE_FREE, FAKE_HOST, FAKE_GPU, FAKE_MEMORY, FAKE_EVENT };

struct fake_memory {   /* "GPU memory": the exported memfd, or made up for an IPC handle */
	uint8_t *base; /* NULL: free entry */
	uint64_t bytes;
	uint32_t holds; /* its handle, and regions in it */
};

struct fake_region {
	enum fake_region_kind kind;
	uint32_t ns, arena, blocks_count;
	uint64_t offset;
	uint32_t memories; /* bit per memory that it holds */
	uint32_t memory;   /* GPU: of its first segment; the others are not looked at */
	uint64_t block_stride;
};

struct fake_lease {
	uint32_t generation; /* 0: free entry */
	uint32_t count;
	uint32_t block[LEASE_BLOCKS_MAX];
};

struct fake_daemon {
	pthread_t thread;
	bool running;
	char dir[64];
	char path[96];
	int poke_fd; /* eventfd: look at the atomics */
	_Atomic int fault;
	_Atomic bool quit, hold, stall, gpu;
	_Atomic uint32_t ring_start;
	_Atomic uint32_t bad_entries, taken, wakeups, byes, regions_count, arenas_count;
	_Atomic uint32_t memories_count, events_count, events_recorded;
	/* the thread's own */
	int listen_fd, sock, sq_fd, cq_fd;
	uint32_t connections; /* handles differ from one to the next */
	uint8_t *segment;
	struct skvc_abi_header layout;
	struct ring sq, cq;
	struct fake_ns ns[NS_MAX];
	uint32_t ns_count;
	struct fake_arena arena[ARENAS_MAX];
	struct fake_memory memory[MEMORIES_MAX];
	struct fake_region region[REGIONS_MAX];
	struct fake_lease lease[LEASES_MAX];
	uint32_t lease_generation;
	struct skvc_abi_sqe *held;
	uint32_t held_count;
	struct fake_block block[BLOCKS_MAX];
};

static inline bool fake_is(struct fake_daemon *d, enum fake_fault fault)
{
	return atomic_load(&d->fault) == (int)fault;
}

/* Handles start elsewhere in each connection: one that a client kept from the last is wrong. */
static inline uint32_t fake_handle_base(const struct fake_daemon *d)
{
	return 1 + 7 * d->connections;
}

static inline struct skvc_abi_header *fake_header(struct fake_daemon *d)
{
	return (struct skvc_abi_header *)d->segment;
}

/* fake_ops.c: true when there was something to do */
bool fake_serve_ring(struct fake_daemon *d);
/* fake_control.c */
void fake_serve_socket(struct fake_daemon *d);
void fake_answer(struct fake_daemon *d, void *packet, uint16_t type, uint32_t bytes, uint32_t seq,
		 const int *fds, unsigned fds_count);
void fake_answer_error(struct fake_daemon *d, uint32_t seq, int res, uint16_t reason,
		       const char *text);
void fake_answer_handle(struct fake_daemon *d, uint16_t type, uint32_t seq, uint32_t handle);
uint32_t fake_region_new(struct fake_daemon *d, const struct fake_region *region); /* its handle */
/* NULL: no such handle of this kind. */
struct fake_region *fake_region_find(struct fake_daemon *d, uint32_t handle,
				     enum fake_region_kind kind);
/* fake_gpu.c */
void fake_on_gpu(struct fake_daemon *d, const struct ctl_header *h, int fd);
void fake_gpu_drop(struct fake_daemon *d, struct fake_region *region); /* a handle goes */
void fake_disconnect(struct fake_daemon *d);

#endif
