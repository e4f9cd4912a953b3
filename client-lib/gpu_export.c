/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_export.c - tell the daemon about the engine's GPU memory and events.  Messages only: the library
 * links no CUDA, and whether the daemon can use them is the daemon's answer (-EOPNOTSUPP from one that
 * serves with the CPU device).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "client-lib/client.h"

static int check_export(struct skvc_session *s, const struct skvc_gpu_export *memory,
			uint32_t blocks_count)
{
	if (!memory)
		return client_error(s, -EINVAL, "memory is NULL");
	if (memory->type != SKVC_GPU_IPC_HANDLE && memory->type != SKVC_GPU_POSIX_FD)
		return client_error(s, -EINVAL, "memory type %u is neither IPC handle nor fd",
				    memory->type);
	if (memory->type == SKVC_GPU_POSIX_FD && memory->fd < 0)
		return client_error(s, -EINVAL, "fd is %d", memory->fd);
	if (memory->offset >= memory->allocation_bytes)
		return client_error(s, -EINVAL,
				    "offset %llu is outside the allocation of %llu bytes",
				    (unsigned long long)memory->offset,
				    (unsigned long long)memory->allocation_bytes);
	if (!blocks_count)
		return client_error(s, -EINVAL, "blocks_count is 0");
	return 0;
}

int skvc_register_gpu(struct skvc_session *session, uint32_t ns,
		      const struct skvc_gpu_export *memory, uint32_t blocks_count,
		      const struct skvc_stride *strides, uint32_t *ret_region)
{
	struct client_region region = { .fd = -1, .ns = ns, .blocks_count = blocks_count };
	struct client_namespace *namespace;
	struct ctl_region_gpu *m;
	uint32_t strides_count;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	namespace = client_namespace_find(session, ns);
	if (!namespace || !ret_region)
		return client_error(session, -EINVAL, "no namespace %u, or ret_region is NULL", ns);
	r = check_export(session, memory, blocks_count);
	if (r < 0)
		return r;
	strides_count = strides ? namespace->segments_count : 0;
	region.packet_bytes =
		(uint32_t)(sizeof(*m) + strides_count * sizeof(struct skvc_abi_stride));
	m = calloc(1, region.packet_bytes);
	if (!m)
		return client_error(session, -ENOMEM, "no memory");
	m->h.type = CTL_REGION_GPU;
	m->ns = namespace->handle;
	m->memory_type = memory->type;
	m->blocks_count = blocks_count;
	m->strides_count = strides_count;
	m->allocation_bytes = memory->allocation_bytes;
	m->offset = memory->offset;
	memcpy(m->device_uuid, memory->device_uuid, sizeof(m->device_uuid));
	if (strides)
		memcpy(m->strides, strides, strides_count * sizeof(struct skvc_abi_stride));
	region.packet = m;
	if (memory->type == SKVC_GPU_IPC_HANDLE) {
		memcpy(m->ipc_handle, memory->ipc_handle, sizeof(m->ipc_handle));
	} else {
		/* Our own copy, to be sent again by skvc_reconnect(). */
		region.fd = fcntl(memory->fd, F_DUPFD_CLOEXEC, 3);
		if (region.fd < 0) {
			r = client_error(session, -errno, "fd %d: %s", memory->fd, strerror(errno));
			free(m);
			return r;
		}
	}
	return client_region_add(session, &region, ret_region);
}

int skvc_register_gpu_event(struct skvc_session *session, const uint8_t ipc_event[64],
			    uint32_t *ret_event)
{
	struct client_region event = { .fd = -1, .packet_bytes = sizeof(struct ctl_event_gpu) };
	struct ctl_event_gpu *m;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ipc_event || !ret_event)
		return client_error(session, -EINVAL, "ipc_event or ret_event is NULL");
	m = calloc(1, sizeof(*m));
	if (!m)
		return client_error(session, -ENOMEM, "no memory");
	m->h.type = CTL_EVENT_GPU;
	memcpy(m->ipc_event, ipc_event, sizeof(m->ipc_event));
	event.packet = m;
	return client_region_add(session, &event, ret_event);
}
