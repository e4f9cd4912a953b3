/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_export.c - tell the daemon about the engine's GPU memory and events.  Messages only: the library
 * links no CUDA, and whether the daemon can use them is the daemon's answer (-EOPNOTSUPP from one that
 * serves no GPU).
 *
 * A region in GPU memory takes several messages: its allocations one by one, the layout, and then the
 * allocations' handles are given back: the region holds them open.  All of it is kept, to be sent again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client-lib/client.h"

#define GPU_MINOR 1u /* of the protocol, that brought it */

_Static_assert(sizeof(struct skvc_gpu_stride) == sizeof(struct skvc_abi_gpu_stride),
	       "copied as it is");
_Static_assert(offsetof(struct skvc_gpu_stride, head_stride) ==
		       offsetof(struct skvc_abi_gpu_stride, head_stride),
	       "stride");
_Static_assert((int)SKVC_GPU_IPC_HANDLE == (int)CTL_MEMORY_IPC_HANDLE &&
		       (int)SKVC_GPU_POSIX_FD == (int)CTL_MEMORY_POSIX_FD,
	       "one number on both sides");

int client_gpu_known(struct skvc_session *s)
{
	if (s->gone || s->link.layout.abi_minor >= GPU_MINOR)
		return 0;
	return client_error(s, -EOPNOTSUPP, "the daemon speaks protocol 1.%u, which has no GPU",
			    s->link.layout.abi_minor);
}

/* ---- what the caller gave ---- */

static int check_memory(struct skvc_session *s, const struct skvc_gpu_export *memory, uint32_t idx,
			bool packed)
{
	if (memory->type != SKVC_GPU_IPC_HANDLE && memory->type != SKVC_GPU_POSIX_FD)
		return client_error(s, -EINVAL,
				    "memories[%u]: type %u is neither IPC handle nor fd", idx,
				    memory->type);
	if (memory->type == SKVC_GPU_POSIX_FD && memory->fd < 0)
		return client_error(s, -EINVAL, "memories[%u]: fd is %d", idx, memory->fd);
	if (!memory->allocation_bytes || memory->allocation_bytes > INT64_MAX)
		return client_error(s, -EINVAL, "memories[%u]: an allocation of %llu bytes", idx,
				    (unsigned long long)memory->allocation_bytes);
	if (!packed && memory->offset)
		return client_error(s, -EINVAL,
				    "memories[%u]: offset is for the packed form; put it into off",
				    idx);
	if (memory->offset >= memory->allocation_bytes)
		return client_error(s, -EINVAL,
				    "offset %llu is outside the allocation of %llu bytes",
				    (unsigned long long)memory->offset,
				    (unsigned long long)memory->allocation_bytes);
	return 0;
}

static int check_layout(struct skvc_session *s, const struct skvc_gpu_export *memories,
			uint32_t memories_count, const struct skvc_gpu_stride *strides,
			uint32_t segments_count)
{
	int r;

	if (!memories || !memories_count || memories_count > SKVC_SEGMENTS_MAX)
		return client_error(s, -EINVAL, "memories is NULL, or memories_count is not 1..%u",
				    SKVC_SEGMENTS_MAX);
	if (!strides && memories_count > 1)
		return client_error(s, -EINVAL, "the packed form lies in one memory, not in %u",
				    memories_count);
	for (uint32_t i = 0; i < memories_count; i++) {
		r = check_memory(s, &memories[i], i, !strides);
		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; strides && i < segments_count; i++) {
		if (strides[i].memory >= memories_count)
			return client_error(s, -EINVAL, "strides[%u]: memory %u of %u", i,
					    strides[i].memory, memories_count);
		if (strides[i].reserved)
			return client_error(s, -EINVAL, "strides[%u]: reserved is not zero", i);
	}
	return 0;
}

/* ---- what is kept of it ---- */

static int keep_memory(struct skvc_session *s, const struct skvc_gpu_export *memory,
		       struct client_gpu_memory *ret)
{
	struct ctl_memory_gpu *m = &ret->packet;

	m->memory_type = memory->type;
	m->allocation_bytes = memory->allocation_bytes;
	memcpy(m->device_uuid, memory->device_uuid, sizeof(m->device_uuid));
	ret->fd = -1;
	if (memory->type == SKVC_GPU_IPC_HANDLE) {
		memcpy(m->ipc_handle, memory->ipc_handle, sizeof(m->ipc_handle));
		return 0;
	}
	/* Our own copy, to be sent again by skvc_reconnect(). */
	ret->fd = fcntl(memory->fd, F_DUPFD_CLOEXEC, 3);
	if (ret->fd < 0)
		return client_error(s, -errno, "fd %d: %s", memory->fd, strerror(errno));
	return 0;
}

/* Handles are indices + 1 until the daemon's are known. */
static struct ctl_region_gpu *keep_layout(uint32_t ns, uint64_t offset, uint32_t blocks_count,
					  const struct skvc_gpu_stride *strides,
					  uint32_t strides_count, uint32_t *ret_bytes)
{
	uint32_t bytes = (uint32_t)(sizeof(struct ctl_region_gpu) +
				    strides_count * sizeof(struct skvc_abi_gpu_stride));
	struct ctl_region_gpu *m = calloc(1, bytes);

	if (!m)
		return NULL;
	m->h.type = CTL_REGION_GPU;
	m->ns = ns;
	m->blocks_count = blocks_count;
	m->strides_count = strides_count;
	if (!strides_count) {
		m->memory = 1;
		m->offset = offset;
	} else {
		memcpy(m->strides, strides, strides_count * sizeof(struct skvc_abi_gpu_stride));
	}
	for (uint32_t i = 0; i < strides_count; i++)
		m->strides[i].memory++;
	*ret_bytes = bytes;
	return m;
}

/* ---- sending ---- */

static int memory_send(struct skvc_session *s, struct client_link *link,
		       struct client_gpu_memory *memory)
{
	struct client_request request = {
		.type = CTL_MEMORY_GPU,
		.expected = CTL_REGION,
		.packet = &memory->packet,
		.packet_bytes = sizeof(memory->packet),
		.fd = memory->fd,
	};
	union client_answer answer;
	int r = client_request_on(s, link, &request, &answer);

	if (!r)
		memory->handle = answer.region.handle;
	return r;
}

/* The packet as it was kept, with this connection's handles in it. */
static int layout_send(struct skvc_session *s, struct client_link *link,
		       const struct client_region *region, uint32_t *ret_handle)
{
	struct ctl_region_gpu *m = malloc(region->packet_bytes);
	struct client_request request = {
		.type = CTL_REGION_GPU,
		.expected = CTL_REGION,
		.packet = m,
		.packet_bytes = region->packet_bytes,
		.fd = -1,
	};
	union client_answer answer;
	int r;

	if (!m)
		return client_error(s, -ENOMEM, "no memory");
	memcpy(m, region->packet, region->packet_bytes);
	if (!m->strides_count)
		m->memory = region->memories[m->memory - 1].handle;
	for (uint32_t i = 0; i < m->strides_count; i++)
		m->strides[i].memory = region->memories[m->strides[i].memory - 1].handle;
	r = client_request_on(s, link, &request, &answer);
	if (!r)
		*ret_handle = answer.region.handle;
	free(m);
	return r;
}

static void memory_free(struct skvc_session *s, struct client_link *link,
			struct client_gpu_memory *memory)
{
	struct ctl_free packet = { .handle = memory->handle };
	struct client_request request = {
		.type = CTL_REGION_FREE,
		.expected = CTL_OK,
		.packet = &packet,
		.packet_bytes = sizeof(packet),
		.fd = -1,
	};
	union client_answer answer;
	int r;

	memory->handle = 0;
	r = client_request_on(s, link, &request, &answer);
	if (r < 0 && r != -EPIPE && r != -ETIMEDOUT)
		client_log(s, "skvc: the daemon would not free a handle: %s", s->error);
}

int client_gpu_region_send(struct skvc_session *s, struct client_link *link,
			   struct client_region *region, uint32_t *ret_handle)
{
	uint32_t opened = 0;
	int r = 0;

	for (; opened < region->memories_count && !r; opened += !r)
		r = memory_send(s, link, &region->memories[opened]);
	if (!r)
		r = layout_send(s, link, region, ret_handle);
	/* A new link that failed is closed by the caller, and takes the handles with it. */
	if (r < 0 && link != &s->link)
		return r;
	for (uint32_t i = 0; i < opened && !(link == &s->link && s->gone); i++)
		memory_free(s, link, &region->memories[i]);
	return r;
}

/* ---- the calls ---- */

int skvc_register_gpu(struct skvc_session *session, uint32_t ns,
		      const struct skvc_gpu_export *memories, uint32_t memories_count,
		      uint32_t blocks_count, const struct skvc_gpu_stride *strides,
		      uint32_t *ret_region)
{
	struct client_region region = { .ns = ns, .blocks_count = blocks_count };
	struct client_namespace *namespace;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	namespace = client_namespace_find(session, ns);
	if (!namespace || !ret_region || !blocks_count)
		return client_error(session, -EINVAL,
				    "no namespace %u, ret_region is NULL, or blocks_count is 0",
				    ns);
	r = check_layout(session, memories, memories_count, strides, namespace->segments_count);
	if (!r)
		r = client_gpu_known(session);
	if (r < 0)
		return r;
	region.memories = calloc(memories_count, sizeof(*region.memories));
	region.packet = keep_layout(namespace->handle, memories[0].offset, blocks_count, strides,
				    strides ? namespace->segments_count : 0, &region.packet_bytes);
	if (!region.memories || !region.packet)
		r = client_error(session, -ENOMEM, "no memory");
	for (; region.memories_count < memories_count && !r; region.memories_count += !r)
		r = keep_memory(session, &memories[region.memories_count],
				&region.memories[region.memories_count]);
	if (r < 0) {
		client_region_clear(&region);
		return r;
	}
	return client_region_add(session, &region, ret_region);
}

int skvc_register_gpu_event(struct skvc_session *session, const uint8_t ipc_event[64],
			    uint32_t *ret_event)
{
	struct client_region event = { .packet_bytes = sizeof(struct ctl_event_gpu) };
	struct ctl_event_gpu *m;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ipc_event || !ret_event)
		return client_error(session, -EINVAL, "ipc_event or ret_event is NULL");
	r = client_gpu_known(session);
	if (r < 0)
		return r;
	m = calloc(1, sizeof(*m));
	if (!m)
		return client_error(session, -ENOMEM, "no memory");
	m->h.type = CTL_EVENT_GPU;
	memcpy(m->ipc_event, ipc_event, sizeof(m->ipc_event));
	event.packet = m;
	return client_region_add(session, &event, ret_event);
}
