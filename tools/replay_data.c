/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_data.c - one request after the other, as an engine would: look up, load what is found, compare it, store the
 * rest, let go.  The engine's pages are host memory; its prefill takes no time, so the daemon has none to catch up.
 */
#include "tools/replay_data.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/progress.h"
#include "tools/skvcctl.h"

#define CALL_NS_MAX 120000000000u
#define LEASE_NS 300000000000u
#define POOL_BYTES_MIN (16ull << 20)	/* [host] pool */
#define SEGMENT_BYTES_MAX (64ull << 20) /* [nvme] segment, its default */
#define SEGMENT_BYTES_MIN (4ull << 20)
#define SEGMENTS_MIN 16u

struct samples {
	uint64_t *ns; /* owned, [max] */
	uint32_t count, max;
	uint64_t sum_ns;
};

struct run {
	struct offload f;
	const struct replay_trace *t;
	const struct replay_data_options *o;
	struct replay_data_result *ret;
	struct skvc_key *keys; /* owned, of the longest request, as those below */
	uint64_t *leases;
	uint32_t leases_count;
	uint64_t *bitmap;
	struct samples lookup, load_host, load_nvme, store;
};

/* ---- blocks ---- */

void replay_data_block(const struct kv_tile *tile, uint32_t number, uint8_t *out)
{
	kv_tile_block(tile, KV_ALL, number, out);
	memcpy(out, &number, sizeof(number)); /* the dump's blocks come again and again */
}

bool replay_data_is(const struct kv_tile *tile, uint32_t number, const uint8_t *bytes,
		    uint8_t *scratch)
{
	replay_data_block(tile, number, scratch);
	return !memcmp(bytes, scratch, tile->g.raw_bytes);
}

static uint8_t *page(const struct run *r, uint32_t index)
{
	return (uint8_t *)(uintptr_t)r->f.memory.address + index * r->f.raw_bytes;
}

static struct skvc_key key_of(uint32_t number)
{
	struct skvc_key key = { .len = SKVC_KEY_BYTES };

	memcpy(key.bytes, &number, sizeof(number));
	return key;
}

/* ---- calls ---- */

static int failed(struct run *r, int error, const char *call)
{
	return bench_session_fail(&r->f.r, error, call, r->f.session);
}

/* Until it is done, asleep when that takes long: the daemon may need the core. */
static int finish(struct run *r, uint64_t job, struct skvc_completion *ret)
{
	struct skvc_completion freed[4];
	int e = skvc_wait(r->f.session, &job, 1, CALL_NS_MAX);

	if (e == 0)
		e = skvc_result(r->f.session, job, ret);
	if (e < 0)
		return failed(r, e, "waiting for a call");
	while (skvc_poll(r->f.session, freed, 4) > 0) /* what else it said, of pages */
		;
	return 0;
}

static int add_sample(struct run *r, struct samples *s, uint64_t ns)
{
	if (s->count == s->max) {
		uint32_t max = s->max ? 2 * s->max : 1024;
		uint64_t *p = realloc(s->ns, max * sizeof(*p));

		if (!p)
			return report_fail(&r->f.r, -ENOMEM, "out of memory");
		s->ns = p;
		s->max = max;
	}
	s->ns[s->count++] = ns;
	s->sum_ns += ns;
	return 0;
}

/* Of the leading ones of these, how many are there. */
static int look_up(struct run *r, uint32_t first, uint32_t count, struct skvc_completion *c,
		   uint64_t *ret_ns)
{
	const struct skvc_lookup args = {
		.ns = r->f.ns,
		.count = count,
		.keys = r->keys + first,
		.parent = first ? r->keys + first - 1 : NULL,
		.lease_ttl_ns = LEASE_NS,
	};
	uint64_t begin_ns = progress_now_ns(), job;
	int e = skvc_lookup(r->f.session, &args, &job);

	if (e < 0)
		return failed(r, e, "skvc_lookup");
	e = finish(r, job, c);
	if (e < 0)
		return e;
	if (c->res < 0 && c->res != -ENOENT)
		return report_fail(&r->f.r, c->res, "lookup: %s (%s)", strerror(-c->res),
				   skvc_reason_name(c->reason));
	if (c->count)
		r->leases[r->leases_count++] = c->lease;
	*ret_ns = progress_now_ns() - begin_ns;
	return add_sample(r, &r->lookup, *ret_ns);
}

/* Blocks of which the load says that they are exact are. */
static int verify(struct run *r, const uint32_t *numbers, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (!(r->bitmap[i / 64] >> (i % 64) & 1)) {
			r->ret->lost++;
			continue;
		}
		if (!replay_data_is(&r->f.tile, numbers[i], page(r, r->o->offload.blocks + i),
				    r->f.host))
			return report_fail(&r->f.r, -EBADMSG,
					   "block %u came back with other bytes than were stored",
					   numbers[i]);
		r->ret->verified++;
	}
	return 0;
}

static int load(struct run *r, const uint32_t *numbers, const struct skvc_completion *found,
		uint64_t lookup_ns)
{
	const struct skvc_load args = {
		.lease = found->lease,
		.region = r->f.region,
		.count = found->count,
		.blocks = r->f.indices + r->o->offload.blocks,
		.ret_bitmap = r->bitmap,
	};
	struct samples *s = found->pending ? &r->load_nvme : &r->load_host;
	struct skvc_completion c = { 0 };
	uint64_t begin_ns, job;
	int e;

	memset(page(r, r->o->offload.blocks), 0x5a, found->count * r->f.raw_bytes);
	begin_ns = progress_now_ns();
	e = skvc_load(r->f.session, &args, &job);
	if (e < 0)
		return failed(r, e, "skvc_load");
	e = finish(r, job, &c);
	if (e == 0)
		e = add_sample(r, s, progress_now_ns() - begin_ns);
	if (e < 0)
		return e;
	s->sum_ns += lookup_ns;
	*(found->pending ? &r->ret->load_nvme_blocks : &r->ret->load_host_blocks) += c.count;
	return verify(r, numbers, found->count);
}

/* From the first of them on that is missing, by the bitmap: how many were taken before that. */
static uint32_t taken(const struct run *r, uint32_t count)
{
	uint32_t i = 0;

	while (i < count && r->bitmap[i / 64] >> (i % 64) & 1)
		i++;
	return i;
}

static int store_some(struct run *r, uint32_t first, uint32_t page_index, uint32_t count,
		      struct skvc_completion *c)
{
	const struct skvc_store args = {
		.ns = r->f.ns,
		.region = r->f.region,
		.count = count,
		.keys = r->keys + first,
		.parent = first ? r->keys + first - 1 : NULL,
		.blocks = r->f.indices + page_index,
		.ret_bitmap = r->bitmap,
	};
	uint64_t begin_ns = progress_now_ns(), job;
	int e = skvc_store(r->f.session, &args, &job);

	if (e < 0)
		return failed(r, e, "skvc_store");
	e = finish(r, job, c);
	if (e == 0)
		e = add_sample(r, &r->store, progress_now_ns() - begin_ns);
	r->ret->stored_raw_bytes += c->raw_bytes;
	r->ret->stored_bytes += c->stored_bytes;
	return e;
}

/* What finds no room waits for it: an engine would compute meanwhile. */
static int store(struct run *r, const uint32_t *numbers, uint32_t first, uint32_t count)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint64_t begin_ns = progress_now_ns(), waited_ns = 0;
	uint32_t done = 0;
	int e = 0;

	for (uint32_t i = 0; i < count; i++)
		replay_data_block(&r->f.tile, numbers[i], page(r, i));
	while (e == 0) {
		struct skvc_completion c = { 0 };

		e = store_some(r, first + done, done, count - done, &c);
		done += taken(r, count - done);
		if (e < 0 || done == count || strcmp(skvc_reason_name(c.reason), "pool-full") != 0)
			break;
		(void)nanosleep(&pause, NULL);
		waited_ns = progress_now_ns() - begin_ns;
		if (waited_ns > CALL_NS_MAX)
			break;
	}
	r->ret->stored += done;
	r->ret->refused += count - done;
	r->ret->waited_s += (double)waited_ns / 1e9;
	return e;
}

static int release_all(struct run *r)
{
	struct skvc_completion c = { 0 };
	uint64_t job;
	int e = 0;

	while (e == 0 && r->leases_count > 0) {
		e = skvc_release(r->f.session, r->leases[--r->leases_count], &job);
		e = e < 0 ? failed(r, e, "skvc_release") : finish(r, job, &c);
	}
	return e;
}

/* ---- requests ---- */

/* Of its blocks, how many were found; they are in the engine's pages, in part at a time. */
static int restore(struct run *r, const uint32_t *numbers, uint32_t count, uint32_t *ret_found)
{
	uint32_t step = r->o->step ? r->o->step : count;
	int e = 0;

	*ret_found = 0;
	for (uint32_t i = 0, n; e == 0 && i < count; i += n) {
		struct skvc_completion found = { 0 };
		uint64_t ns = 0;

		n = count - i < step ? count - i : step;
		e = look_up(r, i, n, &found, &ns);
		if (e < 0 || !found.count)
			break;
		r->ret->nvme += found.pending;
		r->ret->host += found.count - found.pending;
		*ret_found += found.count;
		e = load(r, numbers + i, &found, ns);
		if (found.count < n)
			break;
	}
	return e;
}

static int request(struct run *r, const uint32_t *numbers, uint32_t count)
{
	uint32_t found;
	int e;

	for (uint32_t i = 0; i < count; i++)
		r->keys[i] = key_of(numbers[i]);
	r->ret->asked += count;
	e = restore(r, numbers, count, &found);
	if (e == 0 && found < count)
		e = store(r, numbers + found, found, count - found);
	return e == 0 ? release_all(r) : e;
}

/* ---- the whole ---- */

static uint32_t longest(const struct replay_trace *t)
{
	uint32_t most = 1;

	for (uint32_t i = 0; i < t->requests; i++)
		if (t->first[i + 1] - t->first[i] > most)
			most = t->first[i + 1] - t->first[i];
	return most;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static struct replay_data_times times_of(struct samples *s)
{
	struct replay_data_times t = { .count = s->count, .sum_s = (double)s->sum_ns / 1e9 };
	const uint32_t middle = s->count / 2;

	if (!s->count)
		return t;
	qsort(s->ns, s->count, sizeof(*s->ns), compare);
	t.p50_us = (double)s->ns[middle] / 1e3;
	t.p99_us = (double)s->ns[(uint32_t)(s->count * 0.99)] / 1e3;
	return t;
}

/* What the daemon counted: of its log. */
static int ask_daemon(struct run *r)
{
	const struct skvcctl_source source = { .path = r->f.daemon.bus };
	char err[SKVCCTL_ERR_BYTES] = "";
	struct skvcctl_picture p;

	if (skvcctl_fetch(&source, SKVCCTL_GET_STATS, &p, err, sizeof(err)) != SKVCCTL_OK)
		return report_fail(&r->f.r, -EIO, "%s", err);
	r->ret->nvme_written_bytes = skvcctl_value(&p, SKVCCTL_COUNTER, "nvme_written_bytes");
	r->ret->nvme_first_bytes = skvcctl_value(&p, SKVCCTL_COUNTER, "nvme_stored_bytes");
	r->ret->ahead = skvcctl_value(&p, SKVCCTL_COUNTER, "read_ahead_blocks");
	r->ret->ahead_used = skvcctl_value(&p, SKVCCTL_COUNTER, "read_ahead_used_blocks");
	skvcctl_picture_deinit(&p);
	return 0;
}

static int play(struct run *r)
{
	const struct replay_trace *t = r->t;
	struct progress progress;
	uint64_t begin_ns = progress_now_ns();
	int e = 0;

	progress_start(&progress, stderr, "replay", "requests", t->requests);
	for (uint32_t i = 0; e == 0 && i < t->requests; i++) {
		e = request(r, t->block + t->first[i], t->first[i + 1] - t->first[i]);
		progress_update(&progress, i + 1);
	}
	r->ret->seconds = (double)(progress_now_ns() - begin_ns) / 1e9;
	if (e < 0)
		return e;
	progress_end(&progress, t->requests);
	r->ret->lookup = times_of(&r->lookup);
	r->ret->load_host = times_of(&r->load_host);
	r->ret->load_nvme = times_of(&r->load_nvme);
	r->ret->store = times_of(&r->store);
	return ask_daemon(r);
}

/* A log of a few segments, or of many of the usual size; the pool of what the daemon takes at least. */
static void set_sizes(struct offload_options *o, struct replay_data_result *ret, double raw_bytes,
		      double nvme_percent)
{
	uint64_t pool = (uint64_t)(raw_bytes * ret->percent / 100);
	uint64_t nvme = (uint64_t)(raw_bytes * nvme_percent / 100), segment = SEGMENT_BYTES_MAX;

	while (segment > SEGMENT_BYTES_MIN && segment * SEGMENTS_MIN > nvme)
		segment /= 2;
	if (nvme)
		nvme = segment *
		       (uint64_t)fmax(SEGMENTS_MIN, floor((double)nvme / (double)segment));
	ret->pool_bytes = pool > POOL_BYTES_MIN ? pool & ~0xfffffull : POOL_BYTES_MIN;
	ret->nvme_bytes = nvme;
	o->pool_bytes = ret->pool_bytes;
	o->nvme_bytes = nvme;
	o->nvme_segment_bytes = segment;
}

static uint64_t block_bytes(const struct offload_options *o, char err[REPORT_BYTES])
{
	struct kv_dump dump = { 0 };
	struct kv_tile tile = { 0 };
	uint64_t bytes = 0;

	if (kv_dump_read(o->kv, o->block_tokens, &dump) == 0 &&
	    kv_tile_init(&tile, &dump, o->shape) == 0)
		bytes = tile.g.raw_bytes;
	else
		(void)snprintf(err, REPORT_BYTES, "there is no KV cache to store");
	kv_tile_deinit(&tile);
	kv_dump_deinit(&dump);
	return bytes;
}

static int prepare(struct run *r)
{
	uint32_t most = r->o->offload.blocks;

	r->keys = calloc(most, sizeof(*r->keys));
	r->leases = calloc(most, sizeof(*r->leases));
	r->bitmap = calloc((most + 63u) / 64u, sizeof(*r->bitmap));
	return r->keys && r->leases && r->bitmap ? 0
						 : report_fail(&r->f.r, -ENOMEM, "out of memory");
}

static void run_end(struct run *r)
{
	offload_stop(&r->f);
	free(r->keys);
	free(r->leases);
	free(r->bitmap);
	free(r->lookup.ns);
	free(r->load_host.ns);
	free(r->load_nvme.ns);
	free(r->store.ns);
}

int replay_data_run(const struct replay_trace *t, const struct replay_data_options *o,
		    struct replay_data_result *ret, char err[REPORT_BYTES])
{
	struct replay_data_options mine = *o;
	struct run r = { .t = t, .o = &mine, .ret = ret };
	int e;

	*ret = (struct replay_data_result){ .percent = o->percent };
	if (longest(t) > SKVC_BLOCKS_MAX)
		return report_fail(&(struct report){ "replay", err, REPORT_BYTES }, -E2BIG,
				   "a request has more than %u blocks", SKVC_BLOCKS_MAX);
	ret->block_bytes = block_bytes(&o->offload, err);
	if (!ret->block_bytes)
		return -EINVAL;
	mine.offload.blocks = longest(t);
	mine.offload.kind = BENCH_GPU_HOST;
	mine.offload.sleeps = true;
	set_sizes(&mine.offload, ret, (double)t->blocks * (double)ret->block_bytes,
		  o->nvme_percent);
	e = offload_start(&r.f, &mine.offload);
	if (e == 0)
		e = prepare(&r);
	if (e == 0)
		e = play(&r);
	if (e < 0) {
		demo_daemon_print_log(&r.f.daemon);
		(void)snprintf(err, REPORT_BYTES, "%s", r.f.err);
	}
	run_end(&r);
	return e;
}
