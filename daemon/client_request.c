/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client_request.c - what a client may ask for once it is connected: namespaces, arenas, regions; those on
 * the GPU are in client_gpu.c.  Control thread.  The packet's shape was checked (ctl_msg.h); here is what
 * it means, and every refusal says what to do about it.  Requests that the lane must know of are
 * answered when its mail comes back.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/client.h"
#include "daemon/shipped.h"
#include "daemon/log.h"

#define REASON(name) SKVC_ABI_REASON_##name
#define MIB_OF(bytes) ((bytes) >> 20)

_Static_assert(CTL_SEGMENTS_MAX == CODEC_SEGMENTS_MAX, "what the wire takes, the codec takes");

/* ---- namespaces ---- */

/* One block's raw bytes; the wire's bounds keep this far from wrapping. */
static uint64_t raw_bytes(const struct ctl_ns_open *m)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < m->segments_count; i++)
		bytes += (uint64_t)m->block_tokens * m->segments[i].heads *
			 m->segments[i].head_dim * codec_dtype_bytes(m->segments[i].dtype);
	return bytes;
}

/* The smallest pool whose largest slot takes a block: a slab is a 64th of the pool (pool.h), and a record
 * is up to a 31st longer than its block (lane_block_bytes_max). */
static uint64_t pool_bytes_for(uint64_t block_bytes)
{
	uint64_t need = block_bytes + block_bytes / 31 + 1, slab = 1ull << 20;

	while (slab < need)
		slab *= 2;
	return slab * 64;
}

static int make_geometry(struct client *c, const struct ctl_ns_open *m, struct codec_geometry *ret)
{
	static struct codec_segment
		segments[CTL_SEGMENTS_MAX]; /* one control thread: no need for heap */
	uint64_t bytes = raw_bytes(m), bytes_max = lane_block_bytes_max(c->host->lane);
	int r;

	if (bytes > CODEC_RAW_BYTES_MAX) {
		client_refuse(c, -EFBIG, REASON(TOO_LARGE),
			      "a block of %" PRIu64 " bytes; at most %u: use fewer "
			      "tokens per block",
			      bytes, CODEC_RAW_BYTES_MAX);
		return -EFBIG;
	}
	if (bytes > bytes_max) {
		client_refuse(c, -EFBIG, REASON(TOO_LARGE),
			      "a block of %" PRIu64 " bytes; this pool takes at most "
			      "%" PRIu64 ": set [host] pool to %" PRIu64
			      "M or more, or use fewer tokens per "
			      "block",
			      bytes, bytes_max, MIB_OF(pool_bytes_for(bytes)));
		return -EFBIG;
	}
	for (uint32_t i = 0; i < m->segments_count; i++)
		segments[i] = (struct codec_segment){
			.kind = m->segments[i].kind,
			.dtype = m->segments[i].dtype,
			.layer = m->segments[i].layer,
			.heads = m->segments[i].heads,
			.head_dim = m->segments[i].head_dim,
		};
	r = codec_geometry_init(ret, m->block_tokens, segments, m->segments_count);
	if (r < 0)
		client_refuse(c, r, REASON(BAD_ARGS), "the codec does not take this geometry: %s",
			      strerror(-r));
	return r;
}

static void answer_ns(struct client *c, uint32_t handle)
{
	struct ctl_ns m = { .ns = handle, .block_raw_bytes = c->ns[handle]->geom.raw_bytes };

	client_answer(c, CTL_NS, &m, sizeof(m), NULL, 0);
}

static void no_namespace(struct client *c, int r)
{
	const struct config *config = c->host->config;

	if (r == -EUSERS)
		client_refuse(c, r, REASON(NAMESPACES_FULL),
			      "%u namespaces are known already; raise [daemon] "
			      "namespaces_max, or restart the daemon",
			      config->namespaces_max);
	else if (r == -EDQUOT)
		client_refuse(c, -EUSERS, REASON(TENANT_NAMESPACES),
			      "tenant %s has its share of namespaces, %u; raise [limits] "
			      "namespaces_per_tenant",
			      c->session.tenant->name,
			      config_share(config->namespaces_per_tenant, config->namespaces_max));
	else
		client_refuse(c, r, REASON(MEMORY_LIMIT), "no memory for a namespace");
}

static void ns_open(struct client *c, const struct ctl_ns_open *m)
{
	struct registry_ns_key key = {
		.tenant = c->session.tenant,
		.model = (const char *)m->model,
		.salt = m->salt,
		.salt_bytes = m->salt_bytes,
		.unbounded = c->session.uid == 0,
	};
	uint32_t handle = 0, known = c->host->registry->namespaces_count;
	struct codec_geometry geom = { 0 };
	struct namespace *ns;
	int r;

	if (make_geometry(c, m, &geom) < 0)
		return;
	r = registry_namespace(c->host->registry, &key, &geom, &ns);
	codec_geometry_deinit(&geom); /* not ours any more, or not needed */
	if (r < 0) {
		no_namespace(c, r);
		return;
	}
	/* It is new, or new to whoever ships profiles. */
	if (c->host->registry->namespaces_count > known || ns->restored)
		shipped_offer(c->host->config, c->host->models, ns);
	ns->restored = 0;
	for (uint32_t i = SESSION_NS_MAX; i >= 1; i--) {
		if (c->ns[i] == ns) {
			answer_ns(c, i);
			return;
		}
		if (!c->ns[i])
			handle = i;
	}
	if (!handle) {
		client_refuse(c, -EUSERS, REASON(MEMORY_LIMIT),
			      "a session has at most %u namespaces; open another "
			      "session",
			      SESSION_NS_MAX);
		return;
	}
	c->ns[handle] = ns;
	client_ask(c, LANE_NS_ADD, ns, handle);
}

static void ns_prefill(struct client *c, const struct ctl_ns_prefill *m)
{
	struct namespace *ns = m->ns <= SESSION_NS_MAX ? c->ns[m->ns] : NULL;
	struct ctl_ok ok = { 0 };

	if (!ns) {
		client_refuse(c, -EINVAL, REASON(BAD_NAMESPACE), "no namespace %" PRIu32, m->ns);
		return;
	}
	atomic_store_explicit(&ns->prefill_tokens_per_s, m->tokens_per_s, memory_order_relaxed);
	client_answer(c, CTL_OK, &ok, sizeof(ok), NULL, 0);
}

/* ---- arenas ---- */

static uint64_t arenas_of(const struct client_host *host, uid_t uid)
{
	uint64_t bytes = 0;

	for (uint32_t slot = 0; slot < host->config->sessions_max; slot++)
		if (host->by_slot[slot] && host->by_slot[slot]->session.uid == uid)
			bytes += host->by_slot[slot]->arenas_bytes;
	return bytes;
}

/* What one user may have: a single session may always have its own, for so the daemon was told. */
static uint64_t arenas_share(const struct config *config)
{
	uint64_t half = config->arena_total_bytes / 2;

	if (config->arenas_per_user)
		return config->arenas_per_user;
	return half > config->arena_session_bytes ? half : config->arena_session_bytes;
}

/* A reload may have left him less than he has. */
static int share_allowed(struct client *c, uint64_t bytes)
{
	uint64_t share = arenas_share(c->host->config), has;

	if (!c->session.uid)
		return 0;
	has = arenas_of(c->host, c->session.uid);
	if (has <= share && bytes <= share - has)
		return 0;
	client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
		      "arenas of one user hold at most %" PRIu64 " MiB, %" PRIu64
		      " are in use; raise [limits] arenas_per_user",
		      MIB_OF(share), MIB_OF(has));
	return -EDQUOT;
}

static int arena_allowed(struct client *c, uint64_t bytes)
{
	const struct config *config = c->host->config;

	if (c->session.role) {
		client_refuse(c, -EPERM, REASON(ROLE),
			      "a scheduler session has no memory; connect as a worker");
		return -EPERM;
	}
	if (bytes > config->arena_session_bytes - c->arenas_bytes) {
		client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
			      "arenas of one session hold at most %" PRIu64 " MiB, "
			      "%" PRIu64 " are in use; raise [host] arena_session",
			      MIB_OF(config->arena_session_bytes), MIB_OF(c->arenas_bytes));
		return -EDQUOT;
	}
	if (bytes > config->arena_total_bytes - c->host->arenas_bytes) {
		client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
			      "arenas of all sessions hold at most %" PRIu64 " MiB, %" PRIu64
			      " are in use; raise [host] arena_total",
			      MIB_OF(config->arena_total_bytes), MIB_OF(c->host->arenas_bytes));
		return -EDQUOT;
	}
	return share_allowed(c, bytes);
}

static void arena_new(struct client *c, const struct ctl_arena_new *m)
{
	struct ctl_arena answer = { .bytes = m->bytes };
	uint32_t handle = 1;
	int fd, r;

	if (arena_allowed(c, m->bytes) < 0)
		return;
	while (handle <= SESSION_ARENAS_MAX && c->arena[handle].base)
		handle++;
	if (handle > SESSION_ARENAS_MAX) {
		client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
			      "a session has at most %u arenas; make fewer, larger "
			      "ones",
			      SESSION_ARENAS_MAX);
		return;
	}
	r = arena_init(c->host->config, m->bytes, &c->arena[handle], &fd);
	if (r < 0) {
		client_refuse(c, -ENOMEM, REASON(MEMORY_LIMIT),
			      "an arena of %" PRIu64 " MiB cannot be had: %s%s", MIB_OF(m->bytes),
			      strerror(-r),
			      c->host->config->lock_memory
				      ? "; raise LimitMEMLOCK, or set [host] lock_memory = no"
				      : "");
		return;
	}
	c->arenas_bytes += m->bytes;
	c->host->arenas_bytes += m->bytes;
	answer.arena = handle;
	client_answer(c, CTL_ARENA, &answer, sizeof(answer), &fd, 1);
	(void)close(fd);
}

static void arena_free(struct client *c, uint32_t handle)
{
	struct ctl_ok ok = { 0 };
	struct arena *a;

	if (handle > SESSION_ARENAS_MAX || !c->arena[handle].base) {
		client_refuse(c, -ESTALE, REASON(BAD_REGION), "this session has no arena %u",
			      handle);
		return;
	}
	a = &c->arena[handle];
	if (a->regions_count) {
		client_refuse(c, -EBUSY, REASON(BAD_REGION),
			      "%u regions lie in arena %u; free them first", a->regions_count,
			      handle);
		return;
	}
	c->arenas_bytes -= a->bytes;
	c->host->arenas_bytes -= a->bytes;
	arena_deinit(a);
	client_answer(c, CTL_OK, &ok, sizeof(ok), NULL, 0);
}

/* ---- regions ---- */

/* Room for one message's strides; the control thread is alone. */
static struct codec_stride strides[CTL_SEGMENTS_MAX];
static uint64_t block_strides[CTL_SEGMENTS_MAX];

void client_packed_strides(const struct codec_geometry *g, struct codec_stride *ret_strides,
			   uint64_t *ret_block_strides)
{
	for (uint32_t i = 0; i < g->segments_count; i++) {
		uint64_t head = (uint64_t)g->segments[i].head_dim *
				codec_dtype_bytes(g->segments[i].dtype);

		ret_strides[i].off = g->segment_off[i];
		ret_strides[i].head_stride = head;
		ret_strides[i].token_stride = head * g->segments[i].heads;
		ret_block_strides[i] = g->raw_bytes;
	}
}

static void given_strides(const struct ctl_region_host *m)
{
	for (uint32_t i = 0; i < m->strides_count; i++) {
		strides[i].off = m->strides[i].off;
		strides[i].head_stride = m->strides[i].head_stride;
		strides[i].token_stride = m->strides[i].token_stride;
		block_strides[i] = m->strides[i].block_stride;
	}
}

static int region_allowed(struct client *c, const struct ctl_region_host *m)
{
	if (c->session.role) {
		client_refuse(c, -EPERM, REASON(ROLE),
			      "a scheduler session has no memory; connect as a worker");
		return -EPERM;
	}
	if (m->ns > SESSION_NS_MAX || !c->ns[m->ns]) {
		client_refuse(c, -EINVAL, REASON(BAD_NAMESPACE),
			      "this session has no namespace %u; open it first", m->ns);
		return -EINVAL;
	}
	if (m->arena > SESSION_ARENAS_MAX || !c->arena[m->arena].base) {
		client_refuse(c, -EINVAL, REASON(BAD_REGION),
			      "this session has no arena %u; make it first", m->arena);
		return -EINVAL;
	}
	if (m->strides_count && m->strides_count != c->ns[m->ns]->geom.segments_count) {
		client_refuse(c, -EINVAL, REASON(BAD_REGION),
			      "%u strides for %u segments; give one each, or none for "
			      "the packed form",
			      m->strides_count, c->ns[m->ns]->geom.segments_count);
		return -EINVAL;
	}
	if (m->offset >= c->arena[m->arena].bytes) {
		client_refuse(c, -ERANGE, REASON(BAD_REGION),
			      "offset %" PRIu64 " lies outside the arena of %" PRIu64 " bytes",
			      m->offset, c->arena[m->arena].bytes);
		return -ERANGE;
	}
	return 0;
}

uint32_t client_region_slot(struct client *c)
{
	uint32_t handle = 1;

	while (handle <= SESSION_REGIONS_MAX && c->regions[handle])
		handle++;
	if (handle <= SESSION_REGIONS_MAX)
		return handle;
	client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
		      "a session has at most %u regions, allocations and events; free some",
		      SESSION_REGIONS_MAX);
	return 0;
}

uint32_t client_region_room(struct client *c, uint32_t strides_count)
{
	if (strides_count <= SESSION_STRIDES_MAX - c->strides_count)
		return client_region_slot(c);
	client_refuse(c, -EDQUOT, REASON(MEMORY_LIMIT),
		      "the regions of a session have at most %u segments in all; free some",
		      SESSION_STRIDES_MAX);
	return 0;
}

static void region_host(struct client *c, const struct ctl_region_host *m)
{
	struct arena *a;
	struct region *region;
	struct namespace *ns;
	uint32_t handle;
	int r;

	if (region_allowed(c, m) < 0)
		return;
	ns = c->ns[m->ns];
	a = &c->arena[m->arena];
	handle = client_region_room(c, ns->geom.segments_count);
	if (!handle)
		return;
	region = calloc(1, sizeof(*region));
	if (!region) {
		client_refuse(c, -ENOMEM, REASON(MEMORY_LIMIT), "no memory for a region");
		return;
	}
	if (m->strides_count)
		given_strides(m);
	else
		client_packed_strides(&ns->geom, strides, block_strides);
	r = device_region_init(&region->dev, &ns->geom, a->base + m->offset, a->bytes - m->offset,
			       m->blocks_count, strides, block_strides);
	if (r < 0) {
		free(region);
		client_refuse(
			c, r, r == -ENOMEM ? REASON(MEMORY_LIMIT) : REASON(BAD_REGION), "%s",
			r == -ERANGE ? "a block of the region ends outside the arena"
			: r == -EINVAL
				? "strides overlap, are zero, or are no multiple of the element"
				: strerror(-r));
		return;
	}
	region->ns = ns;
	region->arena = m->arena;
	a->regions_count++;
	c->strides_count += ns->geom.segments_count;
	c->region = region;
	client_ask(c, LANE_REGION_ADD, region, handle);
}

void client_region_delete(struct client *c, struct region *region)
{
	if (region->arena) {
		assert(c->arena[region->arena].regions_count);
		c->arena[region->arena].regions_count--;
	}
	if (region->ns) {
		assert(c->strides_count >= region->ns->geom.segments_count);
		c->strides_count -= region->ns->geom.segments_count;
	}
	client_gpu_close(c, region);
	device_region_deinit(&region->dev);
	free(region);
}

static void region_free(struct client *c, uint32_t handle)
{
	if (handle > SESSION_REGIONS_MAX || !c->regions[handle]) {
		client_refuse(c, -ESTALE, REASON(BAD_REGION), "this session has no region %u",
			      handle);
		return;
	}
	if (client_gpu_memory_free(c, handle))
		return;
	client_ask(c, LANE_REGION_END, c->regions[handle], handle);
}

/* ---- in and out ---- */

void client_request(struct client *c, const void *packet, int fd)
{
	switch (c->type) {
	case CTL_NS_OPEN:
		ns_open(c, packet);
		break;
	case CTL_NS_PREFILL:
		ns_prefill(c, packet);
		break;
	case CTL_ARENA_NEW:
		arena_new(c, packet);
		break;
	case CTL_ARENA_FREE:
		arena_free(c, ((const struct ctl_free *)packet)->handle);
		break;
	case CTL_REGION_HOST:
		region_host(c, packet);
		break;
	case CTL_REGION_FREE:
		region_free(c, ((const struct ctl_free *)packet)->handle);
		break;
	case CTL_MEMORY_GPU:
		client_gpu_memory(c, packet, fd);
		break;
	case CTL_REGION_GPU:
		client_gpu_region(c, packet);
		break;
	case CTL_EVENT_GPU:
		client_gpu_event(c, packet);
		break;
	default:
		assert(0 && "ctl_msg_check_request knows a request that this does not");
	}
}

/* Two parts: what is now true, whether or not the client still listens; then the answer, if it does. */
void client_request_done(struct client *c, const struct mail *mail)
{
	struct ctl_region region = { 0 };
	struct ctl_ok ok = { 0 };
	uint32_t handle = c->handle;
	bool listens = c->state == CLIENT_IDLE;

	assert(mail->value == handle);
	switch (mail->type) {
	case LANE_NS_ADD:
		if (mail->res < 0)
			c->ns[handle] = NULL;
		else if (listens)
			answer_ns(c, handle);
		break;
	case LANE_REGION_ADD:
		assert(mail->object == c->region);
		if (mail->res < 0) {
			client_region_delete(c, c->region);
		} else {
			c->regions[handle] = c->region;
			region.handle = handle;
			if (listens)
				client_answer(c, CTL_REGION, &region, sizeof(region), NULL, 0);
		}
		c->region = NULL;
		break;
	case LANE_REGION_END:
		client_region_delete(c, c->regions[handle]);
		c->regions[handle] = NULL;
		if (listens)
			client_answer(c, CTL_OK, &ok, sizeof(ok), NULL, 0);
		break;
	default:
		assert(0 && "no answer to a request");
	}
	if (mail->res < 0 && listens)
		client_refuse(c, mail->res, REASON(MEMORY_LIMIT), "the data path refused it: %s",
			      strerror(-mail->res));
}

void client_request_drop(struct client *c)
{
	if (!c->region)
		return;
	client_region_delete(c, c->region);
	c->region = NULL;
}
