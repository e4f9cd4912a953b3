/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment.h - sealed memfds: made, sealed and mapped by the daemon; checked and mapped by the client.
 */
#ifndef SKVCD_IPC_SEGMENT_H
#define SKVCD_IPC_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/abi.h"

/* What a session segment of these sizes looks like; all offsets cache-line or page aligned.
 * sq_entries: power of two 8..4096; args_bytes multiple of 4096.  -EINVAL otherwise. */
int segment_layout(uint32_t sq_entries, uint32_t leases_count, uint64_t args_bytes,
		   struct skvc_abi_header *ret_header);

/* Daemon: memfd of `bytes` (page multiple), CLOEXEC, NOEXEC_SEAL where the kernel knows it, sealed
 * against shrink, grow and further seals.  -errno; never unsealed. */
int segment_create(const char *name, uint64_t bytes, int *ret_fd);

/* Map shared, read-write.  -errno. */
int segment_map(int fd, uint64_t bytes, void **ret_base);
void segment_unmap(void *base, uint64_t bytes);

/* Client: the fd is sealed (shrink, grow, seal) and at least `bytes` long.  0, -EPROTO, -errno. */
int segment_check_fd(int fd, uint64_t bytes);

/* Client: a header copied out of a fresh segment makes sense: magic, version, sizes, every area inside
 * segment_bytes and disjoint.  0 or -EPROTO. */
int segment_check_header(const struct skvc_abi_header *header, uint64_t segment_bytes);

#endif
