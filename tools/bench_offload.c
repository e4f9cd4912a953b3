/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_offload.c - as an engine's connector would, with everything checked and nothing hidden from the
 * clock.  One thread; while it waits it polls.
 */
#include "tools/bench_offload.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/progress.h"
#include "tools/skvc_bench.h"
#include "tools/skvcctl.h"

#define CALL_NS_MAX 60000000000u
#define FIT_NS_MAX 120000000000u
#define FIT_TOKENS 4096u     /* [codec] fit_tokens: the daemon's last profile */
#define FIT_BATCH_BLOCKS 64u /* in one call */
#define FIT_PROFILES 2u	     /* as many as fit_tokens has numbers */
#define FIT_SAME 3u	     /* the ratio has settled when it was the same so often */
#define FIT_SAME_UNASKED 60u
#define FIT_LATER_MAX 60u /* batches after the last profile: on a busy machine it never settles */
#define LEASE_NS 300000000000u

struct offload_options offload_defaults(void)
{
	return (struct offload_options){
		.kind = BENCH_GPU_CUDA,
		.shape = KV_SHAPE_LLAMA,
		.block_tokens = 16,
		.pool_bytes = 4ull << 30,
		.blocks = 512,
	};
}

static int option_error(const char *tool, const char *what, const char *value)
{
	(void)bench_usage_error(tool, what, value);
	return -EINVAL;
}

int offload_option(struct offload_options *o, int c, const char *value, const char *tool)
{
	switch (c) {
	case OFFLOAD_KV:
		o->kv = value;
		return 0;
	case OFFLOAD_DEVICE:
		return bench_gpu_kind_parse(value, &o->kind) < 0
			       ? option_error(tool, "no such device: ", value)
			       : 0;
	case OFFLOAD_GPU:
		o->which = value;
		return 0;
	case OFFLOAD_GEOMETRY:
		return kv_shape_parse(value, &o->shape) < 0
			       ? option_error(tool, "no such geometry: ", value)
			       : 0;
	case OFFLOAD_BLOCK_TOKENS:
		return bench_count_parse(value, 1, CODEC_BLOCK_TOKENS_MAX, &o->block_tokens) < 0
			       ? option_error(tool, "not 1 to 1024 tokens: ", value)
			       : 0;
	case OFFLOAD_SOCKET:
		o->socket = value;
		return 0;
	case OFFLOAD_LIBRARY:
		o->library = value;
		return 0;
	case OFFLOAD_POOL:
		return bench_size_parse(value, &o->pool_bytes) < 0
			       ? option_error(tool, "not a size: ", value)
			       : 0;
	case OFFLOAD_UNLOCKED:
		o->unlocked = true;
		return 0;
	case OFFLOAD_EVENTS:
		o->events = true;
		return 0;
	case OFFLOAD_CALIBRATE:
		o->calibrate = value;
		return 0;
	case 'o':
		if (o->settings_count == sizeof(o->settings) / sizeof(o->settings[0]))
			return option_error(tool, "too many settings: ", value);
		o->settings[o->settings_count++] = value;
		return 0;
	default:
		return -ENOENT;
	}
}

/* ---- start ---- */

static int daemon_start(struct offload *f)
{
	char pool[64], library[PATH_MAX + 16], device[32], nvme[64], segment[64];
	const char *overrides[DEMO_OVERRIDES_MAX + 1] = { NULL };
	unsigned n = 0;

	(void)snprintf(nvme, sizeof(nvme), "nvme.size=%llu", (unsigned long long)f->o->nvme_bytes);
	(void)snprintf(segment, sizeof(segment), "nvme.segment=%llu",
		       (unsigned long long)f->o->nvme_segment_bytes);
	overrides[n++] = f->o->nvme_bytes ? nvme : "nvme.path=";
	if (f->o->nvme_bytes)
		overrides[n++] = segment;

	(void)snprintf(pool, sizeof(pool), "host.pool=%llu", (unsigned long long)f->o->pool_bytes);
	overrides[n++] = pool;
	overrides[n++] = f->o->unlocked ? "host.lock_memory=no" : "host.lock_memory=yes";
	overrides[n++] =
		"profile.priority=normal"; /* the fit is waited for, on a busy machine, too */
	(void)snprintf(device, sizeof(device), "gpu.device=%s",
		       f->o->kind == BENCH_GPU_SIM    ? "sim"
		       : f->o->kind == BENCH_GPU_HOST ? "none"
		       : f->o->which		      ? f->o->which
						      : "auto");
	overrides[n++] = device;
	if (f->o->library) {
		(void)snprintf(library, sizeof(library), "gpu.library=%s", f->o->library);
		overrides[n++] = library;
	}
	for (unsigned i = 0; i < f->o->settings_count; i++)
		overrides[n++] = f->o->settings[i];
	return demo_daemon_start_with(&f->daemon, overrides, &f->r);
}

static int session_open(struct offload *f)
{
	const struct skvc_options options = { .name = "skvc-bench",
					      .spin_ns = f->o->sleeps ? 0 : UINT64_MAX };
	const struct codec_geometry *g = &f->tile.g;
	struct skvc_segment *segments = calloc(g->segments_count, sizeof(*segments));
	const struct skvc_geometry geometry = {
		.model = "skvc-bench",
		.block_tokens = g->block_tokens,
		.segments_count = g->segments_count,
		.segments = segments,
	};
	const char *path = f->o->socket ? f->o->socket : f->daemon.socket;
	int r;

	if (!segments)
		return report_fail(&f->r, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < g->segments_count; i++)
		segments[i] = (struct skvc_segment){
			.kind = g->segments[i].kind, /* both are the wire's values */
			.dtype = g->segments[i].dtype,
			.layer = g->segments[i].layer,
			.heads = g->segments[i].heads,
			.head_dim = g->segments[i].head_dim,
		};
	r = skvc_open(path, &options, &f->session);
	if (r < 0) {
		(void)report_fail(&f->r, r, "%s: %s", path, strerror(-r));
	} else {
		r = skvc_namespace_open(f->session, &geometry, &f->ns);
		if (r < 0)
			(void)bench_session_fail(&f->r, r, "skvc_namespace_open", f->session);
	}
	free(segments);
	return r;
}

static int memory_make(struct offload *f)
{
	const uint32_t blocks = 2u * f->o->blocks;
	const uint64_t bytes = blocks * f->raw_bytes;
	void *host = NULL;
	int r = f->gpu.ops->memory_new(&f->gpu, f->session, bytes, &f->memory);

	if (r == 0)
		r = f->gpu.ops->region(&f->gpu, f->session, f->ns, &f->memory, blocks, &f->region);
	if (r == 0)
		r = f->gpu.ops->host_new(&f->gpu, bytes, &host);
	if (r < 0)
		return r;
	f->host = host;
	if (!f->o->events)
		return 0;
	if (!f->gpu.ops->event_new)
		return report_fail(&f->r, -EOPNOTSUPP, "there are no events without a GPU");
	r = f->gpu.ops->event_new(&f->gpu, &f->ipc_event);
	if (r < 0)
		return r;
	r = skvc_register_gpu_event(f->session, f->ipc_event.handle, &f->event);
	return r < 0 ? bench_session_fail(&f->r, r, "skvc_register_gpu_event", f->session) : 0;
}

static int dumps_read(struct offload *f)
{
	int r = kv_dump_read(f->o->kv, f->o->block_tokens, &f->kv);

	if (r == 0 && f->o->calibrate)
		r = kv_dump_read(f->o->calibrate, f->o->block_tokens, &f->calibration);
	if (r < 0)
		return report_fail(&f->r, r, "there is no KV cache to store");
	r = kv_tile_init(&f->tile, &f->kv, f->o->shape);
	if (r == 0)
		r = kv_tile_init(&f->fit_tile, f->o->calibrate ? &f->calibration : &f->kv,
				 f->o->shape);
	if (r < 0)
		return report_fail(&f->r, r, "the codec refuses this shape: %s", strerror(-r));
	if (memcmp(f->tile.g.digest, f->fit_tile.g.digest, CODEC_DIGEST_BYTES) != 0)
		return report_fail(&f->r, -EINVAL, "%s has not the shape and type of %s",
				   f->o->calibrate, f->o->kv);
	return 0;
}

int offload_start(struct offload *f, const struct offload_options *o)
{
	int r;

	*f = (struct offload){ .o = o, .memory = { .fd = -1 }, .ipc_event = { .fd = -1 } };
	f->r = (struct report){ "skvc-bench", f->err, sizeof(f->err) };
	assert(o->blocks > 0 && o->blocks <= SKVC_BLOCKS_MAX);
	r = dumps_read(f);
	if (r < 0)
		return r;
	f->raw_bytes = f->tile.g.raw_bytes;
	f->indices = calloc(2u * o->blocks, sizeof(*f->indices));
	if (!f->indices)
		return report_fail(&f->r, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < 2u * o->blocks; i++)
		f->indices[i] = i;
	/* First the GPU: where there is none, no daemon need be started. */
	r = bench_gpu_open(o->kind, o->which, &f->r, &f->gpu);
	if (r == 0 && !o->socket)
		r = daemon_start(f);
	if (r == 0)
		r = session_open(f);
	return r == 0 ? memory_make(f) : r;
}

void offload_stop(struct offload *f)
{
	f->session = skvc_close(f->session); /* the daemon has let go of the memory then */
	if (f->gpu.ops) {
		if (f->gpu.ops->event_free)
			f->gpu.ops->event_free(&f->gpu, &f->ipc_event);
		f->gpu.ops->memory_free(&f->gpu, &f->memory);
		f->gpu.ops->host_free(&f->gpu, f->host, 2u * f->o->blocks * f->raw_bytes);
	}
	bench_gpu_close(&f->gpu);
	demo_daemon_stop(&f->daemon);
	kv_tile_deinit(&f->tile);
	kv_tile_deinit(&f->fit_tile);
	kv_dump_deinit(&f->kv);
	kv_dump_deinit(&f->calibration);
	free(f->indices);
	f->indices = NULL;
	f->host = NULL;
}

/* ---- calls ---- */

void offload_keys(struct offload *f, struct skvc_key *keys, uint32_t count)
{
	/* Other runs against the same daemon made other names. */
	static uint64_t run;

	if (!run)
		run = progress_now_ns();
	for (uint32_t i = 0; i < count; i++) {
		keys[i] = (struct skvc_key){ .len = SKVC_KEY_BYTES };
		f->keys_made++;
		memcpy(keys[i].bytes, &f->keys_made, sizeof(f->keys_made));
		memcpy(keys[i].bytes + sizeof(f->keys_made), &run, sizeof(run));
	}
}

/* As an engine's stream would: after the kernel that wrote the pages, say. */
static int event_mark(struct offload *f)
{
	return f->event ? f->gpu.ops->event_record(&f->gpu, &f->ipc_event) : 0;
}

int offload_store_begin(struct offload *f, const struct skvc_key *keys, uint32_t first,
			uint32_t count, uint64_t *ret_job)
{
	const struct skvc_store args = {
		.ns = f->ns,
		.region = f->region,
		.count = count,
		.keys = keys,
		.blocks = f->indices + first,
		.ready_event = f->event,
	};
	int r = event_mark(f);

	assert(first + count <= f->o->blocks);
	if (r == 0)
		r = skvc_store(f->session, &args, ret_job);
	return r < 0 ? bench_session_fail(&f->r, r, "skvc_store", f->session) : 0;
}

int offload_load_begin(struct offload *f, uint64_t lease, uint32_t first, uint32_t count,
		       uint64_t *ret_job)
{
	const struct skvc_load args = {
		.lease = lease,
		.region = f->region,
		.count = count,
		.blocks = f->indices + f->o->blocks + first,
		.ready_event = f->event,
	};
	int r = event_mark(f);

	assert(first + count <= f->o->blocks);
	if (r == 0)
		r = skvc_load(f->session, &args, ret_job);
	return r < 0 ? bench_session_fail(&f->r, r, "skvc_load", f->session) : 0;
}

int offload_drop_begin(struct offload *f, const struct skvc_key *keys, uint32_t count,
		       uint64_t *ret_job)
{
	int r = skvc_drop(f->session, f->ns, keys, count, ret_job);

	return r < 0 ? bench_session_fail(&f->r, r, "skvc_drop", f->session) : 0;
}

int offload_check(struct offload *f, const struct skvc_completion *c, uint32_t count,
		  const char *what)
{
	if (c->res < 0)
		return report_fail(&f->r, c->res, "%s of %u blocks: %s (%s)", what, count,
				   strerror(-c->res), skvc_reason_name(c->reason));
	if (c->count != count)
		return report_fail(&f->r, -ENODATA, "%s of %u blocks: only %u", what, count,
				   c->count);
	return 0;
}

/* Until the one job in flight is done. */
static int job_wait(struct offload *f, const char *what, uint64_t begin_ns,
		    struct offload_times *ret_times, struct skvc_completion *ret)
{
	struct skvc_completion c[4];
	bool freed = false;

	*ret = (struct skvc_completion){ 0 };
	*ret_times = (struct offload_times){ 0 };
	for (;;) {
		int n = skvc_poll(f->session, c, 4);
		uint64_t now_ns = progress_now_ns();

		if (n < 0)
			return bench_session_fail(&f->r, n, what, f->session);
		for (int i = 0; i < n; i++) {
			if (!freed)
				ret_times->source_free_ns = now_ns - begin_ns;
			freed = true;
			if (c[i].event != SKVC_EVENT_DONE)
				continue;
			ret_times->done_ns = now_ns - begin_ns;
			*ret = c[i];
			return 0;
		}
		if (n == 0 && now_ns - begin_ns > CALL_NS_MAX)
			return report_fail(&f->r, -ETIMEDOUT, "%s: no completion", what);
		if (n == 0)
			(void)sched_yield();
	}
}

int offload_store(struct offload *f, const struct skvc_key *keys, uint32_t first, uint32_t count,
		  struct offload_times *ret_times, struct skvc_completion *ret)
{
	uint64_t begin_ns = progress_now_ns(), job;
	int r = offload_store_begin(f, keys, first, count, &job);

	if (r == 0)
		r = job_wait(f, "store", begin_ns, ret_times, ret);
	return r == 0 ? offload_check(f, ret, count, "store") : r;
}

int offload_load(struct offload *f, uint64_t lease, uint32_t first, uint32_t count,
		 uint64_t *ret_done_ns)
{
	uint64_t begin_ns = progress_now_ns(), job;
	struct skvc_completion c = { 0 };
	struct offload_times times = { 0 };
	int r = offload_load_begin(f, lease, first, count, &job);

	if (r == 0)
		r = job_wait(f, "load", begin_ns, &times, &c);
	if (r == 0)
		r = offload_check(f, &c, count, "load");
	if (r == 0)
		*ret_done_ns = times.done_ns;
	return r;
}

int offload_lookup(struct offload *f, const struct skvc_key *keys, uint32_t count,
		   uint64_t *ret_lease, uint64_t *ret_done_ns)
{
	const struct skvc_lookup args = {
		.ns = f->ns,
		.count = count,
		.keys = keys,
		.lease_ttl_ns = LEASE_NS,
	};
	uint64_t begin_ns = progress_now_ns(), job;
	struct skvc_completion c = { 0 };
	struct offload_times times = { 0 };
	int r = skvc_lookup(f->session, &args, &job);

	if (r < 0)
		return bench_session_fail(&f->r, r, "skvc_lookup", f->session);
	r = job_wait(f, "lookup", begin_ns, &times, &c);
	if (r == 0)
		r = offload_check(f, &c, count, "lookup");
	if (r < 0)
		return r;
	*ret_lease = c.lease;
	*ret_done_ns = times.done_ns;
	return 0;
}

int offload_release(struct offload *f, uint64_t lease)
{
	struct offload_times times = { 0 };
	struct skvc_completion c = { 0 };
	uint64_t job;
	int r = skvc_release(f->session, lease, &job);

	if (r < 0)
		return bench_session_fail(&f->r, r, "skvc_release", f->session);
	r = job_wait(f, "release", progress_now_ns(), &times, &c);
	return r == 0 && c.res < 0 ? report_fail(&f->r, c.res, "release: %s", strerror(-c.res)) : r;
}

int offload_drop(struct offload *f, const struct skvc_key *keys, uint32_t count)
{
	struct offload_times times = { 0 };
	struct skvc_completion c = { 0 };
	uint64_t job;
	int r = offload_drop_begin(f, keys, count, &job);

	if (r == 0)
		r = job_wait(f, "drop", progress_now_ns(), &times, &c);
	return r == 0 && c.res < 0 ? report_fail(&f->r, c.res, "drop: %s", strerror(-c.res)) : r;
}

/* ---- raw copies ---- */

int offload_copy(struct offload *f, bool to_device, uint32_t first, uint32_t count, uint32_t pieces,
		 uint64_t *ret_ns)
{
	const uint64_t half = f->o->blocks * f->raw_bytes;
	const uint64_t begin_ns = progress_now_ns();
	int r = 0;

	assert(count % pieces == 0 && first + count <= f->o->blocks);
	for (uint32_t i = 0; i < pieces && r == 0; i++) {
		uint64_t bytes = count / pieces * f->raw_bytes;
		uint64_t off = first * f->raw_bytes + i * bytes;

		/* Sources go out to the second half of the host's; what comes in is the first half. */
		r = f->gpu.ops->copy(&f->gpu, to_device,
				     f->memory.address + off + (to_device ? half : 0),
				     f->host + off + (to_device ? 0 : half), bytes);
	}
	if (r == 0)
		r = f->gpu.ops->sync(&f->gpu, to_device);
	*ret_ns = progress_now_ns() - begin_ns;
	return r;
}

int offload_clear(struct offload *f, uint32_t first, uint32_t count)
{
	const uint64_t off = (f->o->blocks + first) * f->raw_bytes, bytes = count * f->raw_bytes;
	int r;

	memset(f->host + off, 0x5a, bytes);
	r = f->gpu.ops->copy(&f->gpu, true, f->memory.address + off, f->host + off, bytes);
	return r == 0 ? f->gpu.ops->sync(&f->gpu, true) : r;
}

int offload_verify(struct offload *f, uint32_t source, uint32_t destination, uint32_t count)
{
	const uint64_t off = (f->o->blocks + destination) * f->raw_bytes;
	int r;

	memset(f->host + off, 0xa5, count * f->raw_bytes);
	r = f->gpu.ops->copy(&f->gpu, false, f->memory.address + off, f->host + off,
			     count * f->raw_bytes);
	if (r == 0)
		r = f->gpu.ops->sync(&f->gpu, false);
	for (uint32_t i = 0; i < count && r == 0; i++)
		if (memcmp(f->host + off + i * f->raw_bytes, f->host + (source + i) * f->raw_bytes,
			   f->raw_bytes) != 0)
			r = report_fail(
				&f->r, -EBADMSG,
				"a load said success, but block %u of %u is not what was stored", i,
				count);
	return r;
}

/* ---- the profile ---- */

static int sources_fill(struct offload *f, bool for_fit)
{
	const enum kv_part part = f->o->calibrate ? KV_ALL
				  : for_fit	  ? KV_FIRST_HALF
						  : KV_SECOND_HALF;
	int r;

	for (uint32_t i = 0; i < f->o->blocks; i++)
		kv_tile_block(for_fit ? &f->fit_tile : &f->tile, part, i,
			      f->host + i * f->raw_bytes);
	r = f->gpu.ops->copy(&f->gpu, true, f->memory.address, f->host,
			     f->o->blocks * f->raw_bytes);
	return r == 0 ? f->gpu.ops->sync(&f->gpu, true) : r;
}

/* Some sources into the daemon and out of it again; what of their bytes was stored. */
static int fit_batch(struct offload *f, struct skvc_key *keys, uint32_t first, uint32_t count,
		     double *ret_ratio)
{
	struct offload_times times = { 0 };
	struct skvc_completion c = { 0 };
	int r;

	offload_keys(f, keys, count);
	r = offload_store(f, keys, first, count, &times, &c);
	if (r == 0)
		r = offload_drop(f, keys, count);
	if (r == 0)
		*ret_ratio = c.stored_bytes ? (double)c.raw_bytes / (double)c.stored_bytes : 0;
	return r;
}

/* How many profiles the daemon has made, the most that any namespace has; or -errno. */
static int profiles_made(struct offload *f, uint32_t *ret_count)
{
	const struct skvcctl_source source = { .path = f->daemon.bus };
	char err[SKVCCTL_ERR_BYTES] = "";
	struct skvcctl_picture p;

	if (skvcctl_fetch(&source, SKVCCTL_GET_NAMESPACES, &p, err, sizeof(err)) != SKVCCTL_OK)
		return report_fail(&f->r, -EIO, "%s", err);
	*ret_count = 0;
	for (size_t i = 0; i < p.namespaces_count; i++)
		if (p.namespaces[i].profile_version > *ret_count)
			*ret_count = p.namespaces[i].profile_version;
	skvcctl_picture_deinit(&p);
	return 0;
}

/*
 * That stores shrink does not say enough: before there is a profile they are coded as `generic` by a CPU.  Our
 * own daemon is asked; with another's it takes many batches of one ratio.  1: the profiles are there.
 */
static int fit_done(struct offload *f, unsigned same, unsigned *later)
{
	uint32_t profiles = 0;
	int r;

	if (f->fitted_blocks * f->tile.g.block_tokens <= FIT_TOKENS)
		return 0;
	if (f->o->socket)
		return same >= FIT_SAME_UNASKED;
	r = profiles_made(f, &profiles);
	if (r < 0 || profiles < FIT_PROFILES)
		return r;
	return same >= FIT_SAME || ++*later > FIT_LATER_MAX;
}

int offload_fit(struct offload *f)
{
	const struct timespec pause = { .tv_nsec = 50000000 };
	const uint32_t count = f->o->blocks < FIT_BATCH_BLOCKS ? f->o->blocks : FIT_BATCH_BLOCKS;
	const uint64_t until_ns = progress_now_ns() + FIT_NS_MAX;
	struct skvc_key *keys = calloc(count, sizeof(*keys));
	unsigned same = 0, later = 0;
	double ratio = 0;
	int r;

	if (!keys)
		return report_fail(&f->r, -ENOMEM, "out of memory");
	r = sources_fill(f, true);
	for (uint32_t i = 0; r == 0; i++) {
		r = fit_batch(f, keys, i % (f->o->blocks / count) * count, count, &ratio);
		if (r < 0)
			break;
		f->fitted_blocks += count;
		same = ratio < f->ratio * 1.01 && ratio > f->ratio * 0.99 ? same + 1u : 0;
		f->ratio = ratio;
		r = fit_done(f, same, &later);
		if (r == 0 && progress_now_ns() > until_ns)
			r = report_fail(&f->r, -ETIMEDOUT, "no profile was made; ratio %.3f",
					ratio);
		if (r == 0 && f->fitted_blocks * f->tile.g.block_tokens > FIT_TOKENS)
			(void)nanosleep(&pause, NULL);
	}
	/* Once more, for the ratio with the last profile. */
	if (r == 1)
		r = fit_batch(f, keys, 0, count, &f->ratio);
	free(keys);
	return r == 0 ? sources_fill(f, false) : r;
}
