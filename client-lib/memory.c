/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c - what a client registers: namespaces, arenas, regions.  Control socket only; not for the hot
 * path.  Each request is kept as it was sent, so that skvc_reconnect() can send it again with the new
 * connection's handles in it.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client-lib/client.h"
#include "ipc/segment.h"

_Static_assert(sizeof(struct skvc_segment) == sizeof(struct skvc_abi_segment), "copied as it is");
_Static_assert(offsetof(struct skvc_segment, head_dim) ==
		       offsetof(struct skvc_abi_segment, head_dim),
	       "segment");
_Static_assert(sizeof(struct skvc_stride) == sizeof(struct skvc_abi_stride), "copied as it is");
_Static_assert(SKVC_SEGMENTS_MAX == CTL_SEGMENTS_MAX, "limits agree");

#define PREFILL_MINOR 2u

/* ---- namespaces: handle h is entry h - 1, never given back before the session ends ---- */

struct client_namespace *client_namespace_find(struct skvc_session *s, uint32_t ns)
{
	return ns && ns <= s->namespaces_count ? &s->namespaces[ns - 1] : NULL;
}

static int make_ns_packet(struct skvc_session *s, const struct skvc_geometry *g,
			  struct ctl_ns_open **ret_packet)
{
	size_t bytes = sizeof(struct ctl_ns_open);
	char text[CTL_TEXT_BYTES];
	struct ctl_ns_open *m;
	uint16_t reason;

	if (!g || !g->model || !g->segments)
		return client_error(s, -EINVAL, "geometry, its model or its segments is NULL");
	if (strlen(g->model) >= sizeof(m->model))
		return client_error(s, -EINVAL, "model is longer than %zu bytes",
				    sizeof(m->model) - 1);
	if (g->salt_bytes > CTL_SALT_BYTES || (g->salt_bytes && !g->salt))
		return client_error(s, -EINVAL, "salt: %zu bytes (0..%u)", g->salt_bytes,
				    CTL_SALT_BYTES);
	if (!g->segments_count || g->segments_count > CTL_SEGMENTS_MAX)
		return client_error(s, -EINVAL, "segments_count %u is outside 1..%u",
				    g->segments_count, CTL_SEGMENTS_MAX);
	bytes += g->segments_count * sizeof(struct skvc_abi_segment);
	m = calloc(1, bytes);
	if (!m)
		return client_error(s, -ENOMEM, "no memory");
	ctl_msg_init(&m->h, CTL_NS_OPEN, (uint32_t)bytes, 0);
	m->block_tokens = g->block_tokens;
	m->segments_count = g->segments_count;
	m->salt_bytes = (uint32_t)g->salt_bytes;
	memcpy(m->model, g->model, strlen(g->model));
	if (g->salt_bytes)
		memcpy(m->salt, g->salt, g->salt_bytes);
	memcpy(m->segments, g->segments, g->segments_count * sizeof(struct skvc_abi_segment));
	/* The daemon's own check, run here: a geometry that cannot be is not worth a packet. */
	if (ctl_msg_check_request(m, bytes, &reason, text)) {
		free(m);
		return client_error(s, -EINVAL, "%s", text);
	}
	*ret_packet = m;
	return 0;
}

static struct client_request ns_request(struct ctl_ns_open *packet)
{
	return (struct client_request){
		.type = CTL_NS_OPEN,
		.expected = CTL_NS,
		.packet = packet,
		.packet_bytes = packet->h.bytes,
		.fd = -1,
	};
}

/* What a block of this geometry is: both sides must count the same bytes. */
static uint64_t raw_bytes_of(const struct ctl_ns_open *m)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < m->segments_count; i++) {
		const struct skvc_abi_segment *seg = &m->segments[i];
		uint64_t element_bytes =
			seg->dtype == SKVC_DTYPE_BF16 || seg->dtype == SKVC_DTYPE_FP16 ? 2 : 1;

		bytes += (uint64_t)m->block_tokens * seg->heads * seg->head_dim * element_bytes;
	}
	return bytes;
}

/* Older daemons take it for garbage, and hang up. */
static int prefill_known(struct skvc_session *s, const struct client_link *link)
{
	if (link->layout.abi_minor >= PREFILL_MINOR)
		return 0;
	return client_error(s, -EOPNOTSUPP,
			    "the daemon speaks protocol 1.%u, which has no prefill rates",
			    link->layout.abi_minor);
}

static struct client_request prefill_request(struct ctl_ns_prefill *packet)
{
	return (struct client_request){
		.type = CTL_NS_PREFILL,
		.expected = CTL_OK,
		.packet = packet,
		.packet_bytes = sizeof(*packet),
		.fd = -1,
	};
}

int skvc_namespace_prefill(struct skvc_session *session, uint32_t ns, uint64_t tokens_per_s)
{
	struct ctl_ns_prefill packet = { .tokens_per_s = tokens_per_s };
	struct client_request request = prefill_request(&packet);
	struct client_namespace *entry;
	union client_answer answer;
	int r = client_enter(session);

	if (r < 0)
		return r;
	entry = client_namespace_find(session, ns);
	if (!entry)
		return client_error(session, -EINVAL, "no namespace %u", ns);
	if (!session->gone)
		r = prefill_known(session, &session->link);
	if (r < 0)
		return r;
	packet.ns = entry->handle;
	r = client_control(session, &request, &answer);
	if (!r)
		entry->prefill_tokens_per_s = tokens_per_s;
	return r;
}

int skvc_namespace_open(struct skvc_session *session, const struct skvc_geometry *geometry,
			uint32_t *ret_ns)
{
	struct client_namespace *grown;
	struct ctl_ns_open *packet = NULL;
	struct client_request request;
	union client_answer answer;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ret_ns)
		return client_error(session, -EINVAL, "ret_ns is NULL");
	if (session->namespaces_count >= CLIENT_NAMESPACES_MAX)
		return client_error(session, -EUSERS, "a session has at most %u namespaces",
				    CLIENT_NAMESPACES_MAX);
	grown = realloc(session->namespaces, (session->namespaces_count + 1) * sizeof(*grown));
	if (!grown)
		return client_error(session, -ENOMEM, "no memory");
	session->namespaces = grown;
	r = make_ns_packet(session, geometry, &packet);
	if (r < 0)
		return r;
	request = ns_request(packet);
	r = client_control(session, &request, &answer);
	if (!r && answer.ns.block_raw_bytes != raw_bytes_of(packet)) {
		client_fail(session, "the daemon counts a block's bytes in another way");
		r = client_error(session, -EPIPE,
				 "the daemon says a block has %llu bytes, not %llu",
				 (unsigned long long)answer.ns.block_raw_bytes,
				 (unsigned long long)raw_bytes_of(packet));
	}
	if (r < 0) {
		free(packet);
		return r;
	}
	session->namespaces[session->namespaces_count] = (struct client_namespace){
		.handle = answer.ns.ns,
		.block_tokens = packet->block_tokens,
		.segments_count = packet->segments_count,
		.block_raw_bytes = answer.ns.block_raw_bytes,
		.packet = packet,
	};
	*ret_ns = ++session->namespaces_count;
	return 0;
}

/* ---- arenas ---- */

/* Longer than other requests: the daemon touches and locks all of it before it answers. */
static uint64_t arena_timeout_ns(const struct skvc_session *s, uint64_t bytes)
{
	uint64_t more_ns = (bytes >> 30) * CLIENT_ARENA_NS_PER_GIB;

	return more_ns > UINT64_MAX - s->timeout_ns ? UINT64_MAX : s->timeout_ns + more_ns;
}

static int arena_request(struct skvc_session *s, struct client_link *link, uint64_t bytes,
			 uint32_t *ret_handle, void **ret_ptr)
{
	struct ctl_arena_new packet = { .bytes = bytes };
	int fd = -1;
	struct client_request request = {
		.type = CTL_ARENA_NEW,
		.expected = CTL_ARENA,
		.packet = &packet,
		.packet_bytes = sizeof(packet),
		.fd = -1,
		.timeout_ns = arena_timeout_ns(s, bytes),
		.ret_fds = &fd,
		.fds_count = 1,
	};
	union client_answer answer;
	int r;

	r = client_request_on(s, link, &request, &answer);
	if (r < 0)
		return r;
	r = answer.arena.bytes == bytes ? segment_check_fd(fd, bytes) : -EPROTO;
	if (!r)
		r = segment_map(fd, bytes, ret_ptr);
	(void)close(fd);
	*ret_handle = answer.arena.arena;
	if (r == -EPROTO && link == &s->link) {
		client_fail(s, "the daemon's arena is not as asked for or not sealed");
		return client_error(s, -EPIPE,
				    "the daemon's arena is not as asked for or not sealed");
	}
	return r < 0 ? client_error(s, r, "arena of %llu bytes: %s", (unsigned long long)bytes,
				    strerror(-r))
		     : 0;
}

/* 0: the daemon has let go of it, or is gone; -ETIMEDOUT: neither is known. */
static int send_free(struct skvc_session *s, uint16_t type, uint32_t handle)
{
	struct ctl_free packet = { .handle = handle };
	struct client_request request = {
		.type = type,
		.expected = CTL_OK,
		.packet = &packet,
		.packet_bytes = sizeof(packet),
		.fd = -1,
	};
	union client_answer answer;
	int r;

	if (!s->gone) {
		r = client_control(s, &request, &answer);
		if (r == -ETIMEDOUT)
			return r;
		if (r < 0 && r != -EPIPE)
			client_log(s, "skvc: the daemon would not free a handle: %s", s->error);
	}
	if (s->gone && client_link_let_go(&s->link, s->timeout_ns) < 0)
		return client_error(
			s, -ETIMEDOUT,
			"the connection is given up, and the daemon has not let go of it yet");
	return 0;
}

int skvc_arena_new(struct skvc_session *session, uint64_t bytes, struct skvc_arena **ret_arena)
{
	struct skvc_arena *arena;
	uint64_t rounded;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ret_arena || !bytes || bytes > INT64_MAX - SKVC_ABI_PAGE_BYTES)
		return client_error(session, -EINVAL,
				    "ret_arena is NULL, or bytes is 0 or too many");
	rounded = (bytes + SKVC_ABI_PAGE_BYTES - 1) & ~(uint64_t)(SKVC_ABI_PAGE_BYTES - 1);
	arena = calloc(1, sizeof(*arena));
	if (!arena)
		return client_error(session, -ENOMEM, "no memory");
	arena->session = session;
	arena->bytes = rounded;
	r = arena_request(session, &session->link, rounded, &arena->handle, &arena->ptr);
	if (r < 0) {
		if (arena->handle)
			(void)send_free(session, CTL_ARENA_FREE, arena->handle);
		free(arena);
		return r;
	}
	arena->next = session->arenas;
	session->arenas = arena;
	*ret_arena = arena;
	return 0;
}

static void arena_unlink(struct skvc_arena *arena)
{
	struct skvc_arena **at = &arena->session->arenas;

	while (*at != arena)
		at = &(*at)->next;
	*at = arena->next;
}

static uint32_t region_handle(const struct skvc_session *s, const struct client_region *region)
{
	return region->generation << 16 | ((uint32_t)(region - s->regions) + 1);
}

/*
 * Of an arena that is freed whatever the daemon does: it writes to a file, and when our mapping of that is gone,
 * to nothing of ours.
 */
static void arena_region_free(struct skvc_session *s, struct client_region *region)
{
	if (!s->gone && skvc_unregister(s, region_handle(s, region)) < 0)
		client_give_up(s, "jobs in an arena that is freed do not end in time");
	if (region->used)
		client_region_clear(region);
}

struct skvc_arena *skvc_arena_free(struct skvc_arena *arena)
{
	struct skvc_session *s;

	if (!arena || !client_is_owner(arena->session))
		return NULL;
	s = arena->session;
	for (uint32_t i = 0; i < s->regions_count; i++)
		if (s->regions[i].used && s->regions[i].arena == arena)
			arena_region_free(s, &s->regions[i]);
	for (uint32_t i = 0; i < s->namespaces_count; i++)
		if (s->namespaces[i].simple_arena == arena)
			s->namespaces[i].simple_arena = NULL;
	if (!s->gone)
		(void)send_free(s, CTL_ARENA_FREE, arena->handle);
	arena_unlink(arena);
	segment_unmap(arena->ptr, arena->bytes);
	free(arena);
	return NULL;
}

void *skvc_arena_ptr(const struct skvc_arena *arena)
{
	return arena ? arena->ptr : NULL;
}

uint64_t skvc_arena_bytes(const struct skvc_arena *arena)
{
	return arena ? arena->bytes : 0;
}

/* ---- regions: handle is {generation:16, index + 1:16} ---- */

struct client_region *client_region_find(struct skvc_session *s, uint32_t handle)
{
	uint32_t idx = (handle & 0xffffu) - 1;

	if (idx >= s->regions_count || !s->regions[idx].used ||
	    s->regions[idx].generation != handle >> 16)
		return NULL;
	return &s->regions[idx];
}

void client_region_clear(struct client_region *region)
{
	free(region->packet);
	region->packet = NULL;
	for (uint32_t i = 0; i < region->memories_count; i++)
		if (region->memories[i].fd >= 0)
			(void)close(region->memories[i].fd);
	free(region->memories);
	region->memories = NULL;
	region->memories_count = 0;
	region->used = false;
	region->generation = region->generation == 0xffff ? 1 : region->generation + 1;
}

static int region_slot(struct skvc_session *s, uint32_t *ret_idx)
{
	struct client_region *grown;
	uint32_t idx = 0;

	while (idx < s->regions_count && s->regions[idx].used)
		idx++;
	if (idx == CLIENT_REGIONS_MAX)
		return client_error(s, -EUSERS, "a session has at most %u regions",
				    CLIENT_REGIONS_MAX);
	if (idx == s->regions_count) {
		grown = realloc(s->regions, (idx + 1) * sizeof(*grown));
		if (!grown)
			return client_error(s, -ENOMEM, "no memory");
		s->regions = grown;
		s->regions[idx] = (struct client_region){ .generation = 1 };
		s->regions_count++;
	}
	*ret_idx = idx;
	return 0;
}

static int region_send(struct skvc_session *s, struct client_link *link,
		       struct client_region *region, uint32_t *ret_handle)
{
	struct client_request request = {
		.type = ((const struct ctl_header *)region->packet)->type,
		.expected = CTL_REGION,
		.packet = region->packet,
		.packet_bytes = region->packet_bytes,
		.fd = -1,
	};
	union client_answer answer;
	int r;

	if (region->memories_count)
		return client_gpu_region_send(s, link, region, ret_handle);
	r = client_request_on(s, link, &request, &answer);
	if (!r)
		*ret_handle = answer.region.handle;
	return r;
}

int client_region_add(struct skvc_session *s, struct client_region *region, uint32_t *ret_region)
{
	uint32_t idx = 0;
	int r;

	r = region_slot(s, &idx);
	if (!r)
		r = region_send(s, &s->link, region, &region->handle);
	if (r) {
		client_region_clear(region);
		return r;
	}
	region->generation = s->regions[idx].generation;
	region->used = true;
	s->regions[idx] = *region;
	*ret_region = region_handle(s, &s->regions[idx]);
	return 0;
}

int skvc_register_host(struct skvc_session *session, uint32_t ns, struct skvc_arena *arena,
		       uint64_t offset, uint32_t blocks_count, const struct skvc_stride *strides,
		       uint32_t *ret_region)
{
	struct client_region region = { 0 };
	struct client_namespace *namespace;
	struct ctl_region_host *m;
	uint32_t strides_count;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	namespace = client_namespace_find(session, ns);
	if (!namespace)
		return client_error(session, -EINVAL, "no namespace %u", ns);
	if (!arena || arena->session != session || !ret_region)
		return client_error(session, -EINVAL,
				    "ret_region is NULL, or the arena is not this session's");
	if (!blocks_count)
		return client_error(session, -EINVAL, "blocks_count is 0");
	strides_count = strides ? namespace->segments_count : 0;
	region.packet_bytes =
		(uint32_t)(sizeof(*m) + strides_count * sizeof(struct skvc_abi_stride));
	m = calloc(1, region.packet_bytes);
	if (!m)
		return client_error(session, -ENOMEM, "no memory");
	m->h.type = CTL_REGION_HOST;
	m->ns = namespace->handle;
	m->arena = arena->handle;
	m->blocks_count = blocks_count;
	m->strides_count = strides_count;
	m->offset = offset;
	if (strides)
		memcpy(m->strides, strides, strides_count * sizeof(struct skvc_abi_stride));
	region.packet = m;
	region.ns = ns;
	region.blocks_count = blocks_count;
	region.arena = arena;
	return client_region_add(session, &region, ret_region);
}

struct region_jobs {
	uint32_t region;     /* or event */
	uint32_t first_live; /* no job before it uses the region any more */
};

static bool region_is_idle(struct skvc_session *s, void *user)
{
	struct region_jobs *jobs = user;

	for (; jobs->first_live < s->jobs_max; jobs->first_live++) {
		const struct client_job *job = &s->jobs[jobs->first_live];

		if (job->state == CLIENT_JOB_LIVE &&
		    (job->region == jobs->region || job->ready_event == jobs->region ||
		     job->done_event == jobs->region))
			return false;
	}
	return true;
}

int skvc_unregister(struct skvc_session *session, uint32_t region)
{
	struct region_jobs jobs = { .region = region };
	struct client_region *entry;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	entry = client_region_find(session, region);
	if (!entry)
		return client_error(session, -ESTALE, "no region 0x%x", region);
	r = client_wait(session, region_is_idle, &jobs, session->timeout_ns);
	if (r < 0)
		return client_error(session, r,
				    "jobs still use region 0x%x; it stays registered, call again",
				    region);
	r = send_free(session, CTL_REGION_FREE, entry->handle);
	if (!r)
		client_region_clear(entry);
	return r;
}

/* ---- a new connection ---- */

/* Same address, new memory: the contents move over, and the new mapping over the old one. */
static int arena_reopen(struct skvc_session *s, struct client_link *link, struct skvc_arena *arena)
{
	uint32_t handle = 0;
	void *fresh = NULL;
	int r;

	r = arena_request(s, link, arena->bytes, &handle, &fresh);
	if (r)
		return r;
	assert(fresh);
	memcpy(fresh, arena->ptr, (size_t)arena->bytes);
	if (mremap(fresh, (size_t)arena->bytes, (size_t)arena->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
		   arena->ptr) == MAP_FAILED) {
		r = -errno;
		segment_unmap(fresh, arena->bytes);
		return client_error(s, r, "cannot map an arena again: %s", strerror(-r));
	}
	arena->handle = handle;
	return 0;
}

static int region_reopen(struct skvc_session *s, struct client_link *link,
			 struct client_region *region)
{
	struct client_namespace *namespace = client_namespace_find(s, region->ns);
	const struct ctl_header *h = region->packet;

	if (h->type == CTL_REGION_HOST) {
		((struct ctl_region_host *)region->packet)->ns = namespace->handle;
		((struct ctl_region_host *)region->packet)->arena = region->arena->handle;
	} else if (h->type == CTL_REGION_GPU) {
		((struct ctl_region_gpu *)region->packet)->ns = namespace->handle;
	}
	return region_send(s, link, region, &region->handle);
}

/* A daemon that was exchanged for an older one goes on without. */
static int prefill_again(struct skvc_session *s, struct client_link *link,
			 const struct client_namespace *namespace)
{
	struct ctl_ns_prefill packet = { .ns = namespace->handle,
					 .tokens_per_s = namespace->prefill_tokens_per_s };
	struct client_request request = prefill_request(&packet);
	union client_answer answer;
	bool broken;

	if (!packet.tokens_per_s || link->layout.abi_minor < PREFILL_MINOR)
		return 0;
	return client_link_request(s, link, &request, &answer, &broken);
}

/*
 * When this fails half-way, handles of the failed connection stay in the tables: harmless, since the
 * session is gone and nothing is sent before all of them are replaced by a later attempt.
 */
int client_memory_reopen(struct skvc_session *s, struct client_link *link)
{
	union client_answer answer;
	bool broken;
	int r;

	for (uint32_t i = 0; i < s->namespaces_count; i++) {
		struct client_request request = ns_request(s->namespaces[i].packet);

		r = client_link_request(s, link, &request, &answer, &broken);
		if (r < 0)
			return r;
		if (answer.ns.block_raw_bytes != s->namespaces[i].block_raw_bytes)
			return client_error(s, -EPROTO,
					    "the daemon counts a block's bytes in another way");
		s->namespaces[i].handle = answer.ns.ns;
		r = prefill_again(s, link, &s->namespaces[i]);
		if (r < 0)
			return r;
	}
	for (struct skvc_arena *arena = s->arenas; arena; arena = arena->next) {
		r = arena_reopen(s, link, arena);
		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; i < s->regions_count; i++) {
		if (!s->regions[i].used)
			continue;
		r = region_reopen(s, link, &s->regions[i]);
		if (r < 0)
			return r;
	}
	return 0;
}

void client_memory_deinit(struct skvc_session *s)
{
	while (s->arenas) {
		struct skvc_arena *arena = s->arenas;

		s->arenas = arena->next;
		segment_unmap(arena->ptr, arena->bytes);
		free(arena);
	}
	for (uint32_t i = 0; i < s->regions_count; i++)
		if (s->regions[i].used)
			client_region_clear(&s->regions[i]);
	for (uint32_t i = 0; i < s->namespaces_count; i++)
		free(s->namespaces[i].packet);
	free(s->regions);
	free(s->namespaces);
	s->regions = NULL;
	s->regions_count = 0;
	s->namespaces = NULL;
	s->namespaces_count = 0;
}
