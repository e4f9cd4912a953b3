/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_codec_gpu.c - the codec on a GPU: pages and payloads in device memory, encode with and without
 * verifying, decode, everything compared.  It plays the lane: it alone calls the device.
 *
 * Device memory is one piece of "pool": pages, then as much for what is decoded, then a payload slot per
 * block.  Whatever goes in or out of it goes by MOVE through one registered piece of host memory.
 */
#include "tools/bench_codec.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/device.h"
#include "tools/bench_samples.h"
#include "tools/demo_daemon.h"
#include "tools/progress.h"

#define TASKS_MAX 1024u
#define POLL_MAX 64u
#define PASSES_MIN 5u
#define PASSES_MAX 1000u
#define ALIGN 256u
#define STAGING_BYTES_MIN (128ull << 20)
#define STALL_NS 120000000000u /* no completion for so long: the device hangs */

struct slot {
	struct device_task task;
	uint32_t index; /* of its block */
	bool moving;	/* its payload, to where it is kept */
	void *staged;	/* to be given back */
};

struct gpu_bench {
	const struct codec_gpu_options *o;
	const struct codec_gpu_input *in;
	const struct report *r;
	struct codec_gpu_results *out;
	struct device *d;
	int wake_fd;
	uint32_t blocks;
	uint64_t slot_bytes;		 /* of a payload */
	uint8_t *pages, *back, *payload; /* addresses of the device */
	struct device_region from, to;	 /* pages, back */
	bool from_open, to_open;
	uint8_t *host; /* owned mapping: in->count blocks, or a payload */
	uint64_t host_bytes;
	bool host_registered;
	struct slot *slots; /* owned */
	struct slot **idle; /* owned */
	uint32_t slots_count, idle_count;
	uint64_t *payload_bytes, *xxh3; /* owned, of each block */
};

/* What a pass does with each of `count` blocks, or each piece of memory. */
struct pass {
	const char *name;
	uint32_t count;
	void (*fill)(const struct gpu_bench *b, struct slot *s);
	/* After success.  1: the slot's task is to be started again, as it now is. */
	int (*done)(struct gpu_bench *b, struct slot *s);
};

void bench_cuda_library(char *ret, size_t ret_bytes)
{
	char self[PATH_MAX];

	demo_daemon_own_folder(self);
	(void)snprintf(ret, ret_bytes, "%s/../lib/skvcd/libskvcd-cuda.so", self);
}

/* ---- running tasks ---- */

/* 1: started; 0: not now; or -errno. */
static int slot_start(struct gpu_bench *b, struct slot *s)
{
	int r = b->d->ops->start(b->d, &s->task);

	if (r == 0)
		return 1;
	return r == -EAGAIN && b->idle_count + 1u < b->slots_count ? 0 : r;
}

static void slot_unstage(struct gpu_bench *b, struct slot *s)
{
	if (s->staged)
		b->d->ops->unstage(b->d, s->staged);
	s->staged = NULL;
}

/* After a failure: nothing may be on its way when memory is given back. */
static void drain(struct gpu_bench *b)
{
	uint64_t until = progress_now_ns() + STALL_NS;
	struct device_task *done[POLL_MAX];

	while (b->idle_count < b->slots_count && progress_now_ns() < until) {
		unsigned n = b->d->ops->poll(b->d, done, POLL_MAX);

		for (unsigned i = 0; i < n; i++) {
			struct slot *s = done[i]->user;

			if (done[i]->op == DEVICE_ENCODE && done[i]->res == 0)
				s->staged = done[i]->staged;
			slot_unstage(b, s);
			b->idle[b->idle_count++] = s;
		}
	}
}

/* A task has come back: 1 when the pass is through with its slot, 0 when it was started again. */
static int slot_finish(struct gpu_bench *b, const struct pass *p, struct slot *s,
		       uint64_t *ret_busy_ns)
{
	int r = s->task.res;

	if (s->task.op == DEVICE_ENCODE && r == 0)
		s->staged = s->task.staged;
	*ret_busy_ns += s->task.busy_ns;
	if (r == 0)
		r = p->done ? p->done(b, s) : 0;
	else
		(void)report_fail(b->r, r, "%s of block %u: %s", p->name, s->index, strerror(-r));
	if (r == 1) {
		r = slot_start(b, s);
		if (r == 1)
			return 0;
		r = r == 0 ? -EAGAIN : r;
		(void)report_fail(b->r, r, "%s: start: %s", p->name, strerror(-r));
	}
	slot_unstage(b, s);
	b->idle[b->idle_count++] = s;
	return r < 0 ? r : 1;
}

static int pass_feed(struct gpu_bench *b, const struct pass *p, uint32_t *begun)
{
	while (*begun < p->count && b->idle_count > 0) {
		struct slot *s = b->idle[--b->idle_count];
		int r;

		*s = (struct slot){ .index = *begun, .task = { .user = s } };
		p->fill(b, s);
		r = slot_start(b, s);
		if (r == 1) {
			++*begun;
			continue;
		}
		b->idle[b->idle_count++] = s;
		return r < 0 ? report_fail(b->r, r, "%s: start: %s", p->name, strerror(-r)) : 0;
	}
	return 0;
}

/* All of a pass.  *ret_busy_ns: what its tasks took of the device. */
static int pass_run(struct gpu_bench *b, const struct pass *p, uint64_t *ret_busy_ns)
{
	uint64_t until = progress_now_ns() + STALL_NS;
	struct device_task *done[POLL_MAX];
	uint32_t begun = 0, ended = 0;
	int r = 0;

	*ret_busy_ns = 0;
	while (ended < p->count && r >= 0) {
		unsigned n;

		r = pass_feed(b, p, &begun);
		n = r < 0 ? 0 : b->d->ops->poll(b->d, done, POLL_MAX);
		for (unsigned i = 0; i < n; i++) {
			int one = slot_finish(b, p, done[i]->user, ret_busy_ns);

			r = one < 0 && r == 0 ? one : r;
			ended += one != 0;
			until = progress_now_ns() + STALL_NS;
		}
		if (r == 0 && progress_now_ns() > until)
			r = report_fail(b->r, -ETIMEDOUT, "%s: the device hangs", p->name);
	}
	if (r < 0)
		drain(b);
	return r < 0 ? r : 0;
}

/* ---- what passes do ---- */

static void fill_encode(const struct gpu_bench *b, struct slot *s)
{
	s->task.op = DEVICE_ENCODE;
	s->task.region = &b->from;
	s->task.block_index = s->index;
	s->task.speculator = b->in->speculator;
	s->task.position = b->in->positions ? b->in->positions[s->index % b->in->count]
					    : CODEC_POSITION_UNKNOWN;
	s->task.geom = b->in->g;
	s->task.profile = b->in->profile;
	s->task.out_cap_bytes = b->in->cap;
}

static void fill_encode_verify(const struct gpu_bench *b, struct slot *s)
{
	fill_encode(b, s);
	s->task.verify = 1;
}

static void fill_decode(const struct gpu_bench *b, struct slot *s)
{
	s->task.op = DEVICE_DECODE;
	s->task.region = &b->to;
	s->task.block_index = s->index;
	s->task.geom = b->in->g;
	s->task.profile = b->in->profile;
	s->task.in = b->payload + s->index * b->slot_bytes;
	s->task.in_bytes = b->payload_bytes[s->index];
	s->task.in_place = DEVICE_PLACE_DEVICE;
	s->task.expect_xxh3 = b->xxh3[s->index];
}

static void task_move(struct device_task *t, const void *in, uint8_t in_place, void *out,
		      uint8_t out_place, uint64_t bytes)
{
	t->op = DEVICE_MOVE;
	t->copies_count = 1;
	t->copy[0] = (struct device_copy){
		.in = in,
		.out = out,
		.bytes = bytes,
		.in_place = in_place,
		.out_place = out_place,
	};
}

/* The payload of a block that was encoded to be kept goes from staging to its slot. */
static int done_keep(struct gpu_bench *b, struct slot *s)
{
	const struct codec_info *info = &s->task.info;
	uint32_t i = s->index;

	if (s->moving)
		return 0;
	if (info->encoded_bytes > b->slot_bytes)
		return report_fail(b->r, -ENOSPC, "block %u: a payload of %llu bytes", i,
				   (unsigned long long)info->encoded_bytes);
	b->payload_bytes[i] = info->encoded_bytes;
	b->xxh3[i] = info->raw_xxh3;
	b->out->encoded_bytes += info->encoded_bytes;
	b->out->escapes += info->escapes;
	b->out->chunks_raw += info->chunks_raw;
	s->moving = true;
	s->task = (struct device_task){ .user = s };
	task_move(&s->task, s->staged, DEVICE_PLACE_DEVICE, b->payload + i * b->slot_bytes,
		  DEVICE_PLACE_DEVICE, b->payload_bytes[i]);
	return 1;
}

/* in->count blocks at a time, from the host's memory to the pages or to what was decoded. */
static void fill_pages(const struct gpu_bench *b, struct slot *s)
{
	uint64_t bytes = b->in->count * b->in->g->raw_bytes;

	task_move(&s->task, b->host, DEVICE_PLACE_HOST, b->pages + s->index * bytes,
		  DEVICE_PLACE_DEVICE, bytes);
}

static void fill_back(const struct gpu_bench *b, struct slot *s)
{
	uint64_t bytes = b->in->count * b->in->g->raw_bytes;

	task_move(&s->task, b->host, DEVICE_PLACE_HOST, b->back + s->index * bytes,
		  DEVICE_PLACE_DEVICE, bytes);
}

/* One task alone: device memory to the front of the host's. */
static int fetch(struct gpu_bench *b, const uint8_t *from, uint64_t bytes)
{
	struct device_task *done[POLL_MAX];
	uint64_t until = progress_now_ns() + STALL_NS;
	struct slot *s = b->idle[--b->idle_count];
	unsigned n = 0;
	int r;

	*s = (struct slot){ .task = { .user = s } };
	task_move(&s->task, from, DEVICE_PLACE_DEVICE, b->host, DEVICE_PLACE_HOST, bytes);
	r = b->d->ops->start(b->d, &s->task);
	while (r == 0 && n == 0) {
		n = b->d->ops->poll(b->d, done, 1);
		if (n == 0 && progress_now_ns() > until)
			return report_fail(b->r, -ETIMEDOUT, "MOVE: the device hangs");
	}
	b->idle[b->idle_count++] = s;
	r = r == 0 ? s->task.res : r;
	return r < 0 ? report_fail(b->r, r, "MOVE: %s", strerror(-r)) : 0;
}

/* ---- measuring ---- */

static int measure(struct gpu_bench *b, const struct pass *p, struct codec_gpu_time *ret)
{
	double *busy = malloc(PASSES_MAX * sizeof(*busy)),
	       *wall = malloc(PASSES_MAX * sizeof(*wall));
	uint64_t busy_ns;
	double spent = 0;
	uint32_t n = 0;
	int r = busy && wall ? pass_run(b, p, &busy_ns) : -ENOMEM; /* the first one warms up */

	while (r == 0 && n < PASSES_MAX && (n < PASSES_MIN || spent < b->o->seconds)) {
		uint64_t begin = progress_now_ns();

		r = pass_run(b, p, &busy_ns);
		wall[n] = (double)(progress_now_ns() - begin) * 1e-9;
		busy[n] = (double)busy_ns * 1e-9;
		spent += wall[n++];
	}
	if (r == 0)
		*ret = (struct codec_gpu_time){ median(busy, n), median(wall, n), n };
	free(busy);
	free(wall);
	return r;
}

static int payloads_compare(struct gpu_bench *b)
{
	const struct codec_gpu_input *in = b->in;
	int r = 0;

	for (uint32_t i = 0; i < in->count && r == 0; i++) {
		r = fetch(b, b->payload + i * b->slot_bytes, b->payload_bytes[i]);
		if (r < 0)
			break;
		b->out->compared++;
		b->out->identical += b->payload_bytes[i] == in->coded_bytes[i] &&
				     !memcmp(b->host, in->coded + i * in->cap, in->coded_bytes[i]);
		if (i == 0 && b->d->ops->can_decode &&
		    b->d->ops->can_decode(b->d, in->g, in->profile, b->host, b->payload_bytes[0]) <=
			    0)
			r = report_fail(b->r, -EBADMSG,
					"the device does not decode its own payload");
	}
	return r;
}

static int blocks_compare(struct gpu_bench *b)
{
	const struct codec_gpu_input *in = b->in;
	uint64_t bytes = in->count * in->g->raw_bytes;
	int r = 0;

	for (uint32_t k = 0; k < b->blocks / in->count && r == 0; k++) {
		r = fetch(b, b->back + k * bytes, bytes);
		for (uint32_t i = 0; i < in->count && r == 0; i++)
			b->out->verified += !memcmp(b->host + i * in->g->raw_bytes,
						    in->blocks + i * in->g->raw_bytes,
						    in->g->raw_bytes);
	}
	if (r == 0 && b->out->verified != b->blocks)
		r = report_fail(b->r, -EBADMSG, "%u of %u blocks were restored", b->out->verified,
				b->blocks);
	return r;
}

static int bench_run(struct gpu_bench *b)
{
	const uint32_t copies = b->blocks / b->in->count;
	const struct pass load = { "MOVE", copies, fill_pages, NULL };
	const struct pass clear = { "MOVE", copies, fill_back, NULL };
	const struct pass encode = { "ENCODE", b->blocks, fill_encode, NULL };
	const struct pass verify = { "ENCODE with verify", b->blocks, fill_encode_verify, NULL };
	const struct pass keep = { "ENCODE", b->blocks, fill_encode_verify, done_keep };
	const struct pass decode = { "DECODE", b->blocks, fill_decode, NULL };
	uint64_t busy_ns;
	int r;

	memcpy(b->host, b->in->blocks, b->in->count * b->in->g->raw_bytes);
	r = pass_run(b, &load, &busy_ns);
	if (r == 0)
		r = measure(b, &encode, &b->out->encode);
	if (r == 0)
		r = measure(b, &verify, &b->out->encode_verify);
	if (r == 0)
		r = pass_run(b, &keep, &busy_ns);
	if (r == 0)
		r = payloads_compare(b);
	if (r == 0)
		r = measure(b, &decode, &b->out->decode);
	/* What lies there came from passes whose bytes nobody looked at: once more, onto nothing. */
	memset(b->host, 0x5a, b->host_bytes);
	if (r == 0)
		r = pass_run(b, &clear, &busy_ns);
	if (r == 0)
		r = pass_run(b, &decode, &busy_ns);
	return r == 0 ? blocks_compare(b) : r;
}

/* ---- before and after ---- */

static int device_make(struct gpu_bench *b, uint64_t staging_bytes, char *err)
{
	const struct gpu_device_options options = {
		.which = b->o->which ? b->o->which : "auto",
		.tasks_max = TASKS_MAX,
		.wake_fd = b->wake_fd,
		.staging_bytes = staging_bytes,
		.share_percent = 100,
		.background_percent = 100,
	};
	char library[PATH_MAX + 64];

	err[0] = '\0';
	if (b->o->sim)
		return sim_device_new(&options, &b->d);
	bench_cuda_library(library, sizeof(library));
	return cuda_load_device(b->o->library ? b->o->library : library, &options, &b->d, err);
}

static int device_open(struct gpu_bench *b)
{
	uint64_t staging_bytes = b->o->staging_bytes;
	char err[DEVICE_ERR_BYTES];
	int r = device_make(b, staging_bytes, err);

	/* Somebody else may hold most of the card. */
	for (; r == -ENOMEM && staging_bytes >= 2u * STAGING_BYTES_MIN; staging_bytes /= 2u)
		r = device_make(b, staging_bytes / 2u, err);
	if (r < 0)
		return report_fail(b->r, r, "no device: %s", err[0] ? err : strerror(-r));
	if (!b->d->facts || !b->d->import || !b->d->ops->pool_memory)
		return report_fail(b->r, -ENOTSUP, "a device without memory of its own");
	if (b->d->ops->can_encode(b->d, b->in->g, b->in->profile, b->in->speculator) <= 0)
		return report_fail(b->r, -ENOTSUP, "it does not code `%s` of this shape",
				   codec_speculator_name(b->in->speculator));
	(void)snprintf(b->out->name, sizeof(b->out->name), "%s", b->d->ops->name);
	(void)snprintf(b->out->model, sizeof(b->out->model), "%s", b->d->facts->model);
	b->out->staging_bytes = b->d->facts->staging_bytes;
	b->out->footprint_bytes = b->d->facts->footprint_bytes;
	return 0;
}

static int region_make(struct gpu_bench *b, uint8_t *base, struct device_region *region)
{
	const struct codec_geometry *g = b->in->g;
	struct codec_stride *stride = calloc(g->segments_count, sizeof(*stride));
	uint64_t *block_stride = calloc(g->segments_count, sizeof(*block_stride));
	int r = stride && block_stride ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < g->segments_count && r == 0; i++) {
		const struct codec_segment *s = &g->segments[i];
		uint64_t head_bytes = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);

		stride[i] = (struct codec_stride){
			.off = g->segment_off[i],
			.token_stride = s->heads * head_bytes,
			.head_stride = head_bytes,
		};
		block_stride[i] = g->raw_bytes;
	}
	if (r == 0)
		r = device_region_init(region, g, base, b->blocks * g->raw_bytes, b->blocks, stride,
				       block_stride);
	free(stride);
	free(block_stride);
	if (r == 0) {
		r = b->d->import->region_open(b->d, region);
		if (r < 0)
			device_region_deinit(region);
	}
	return r < 0 ? report_fail(b->r, r, "a region: %s", strerror(-r)) : 0;
}

static int device_memory_make(struct gpu_bench *b)
{
	const uint64_t raw = b->blocks * b->in->g->raw_bytes;
	const uint64_t room = (raw + ALIGN - 1u) & ~(uint64_t)(ALIGN - 1u);
	const uint64_t bytes = 2u * room + b->blocks * b->slot_bytes;
	void *base;
	int r = b->d->ops->pool_memory(b->d, bytes, &base);

	if (r < 0)
		return report_fail(b->r, r, "%llu bytes of device memory: %s",
				   (unsigned long long)bytes, strerror(-r));
	b->pages = base;
	b->back = b->pages + room;
	b->payload = b->back + room;
	r = region_make(b, b->pages, &b->from);
	b->from_open = r == 0;
	if (r == 0) {
		r = region_make(b, b->back, &b->to);
		b->to_open = r == 0;
	}
	return r;
}

static int host_make(struct gpu_bench *b)
{
	uint64_t bytes = b->in->count * b->in->g->raw_bytes;
	void *host;
	int r = 0;

	bytes = bytes < b->slot_bytes ? b->slot_bytes : bytes;
	b->host_bytes = (bytes + (2u << 20) - 1u) & ~(uint64_t)((2u << 20) - 1u);
	host = mmap(NULL, b->host_bytes, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (host == MAP_FAILED)
		return report_fail(b->r, -ENOMEM, "out of memory");
	b->host = host;
	if (b->d->ops->host_register) {
		r = b->d->ops->host_register(b->d, b->host, b->host_bytes);
		b->host_registered = r == 0;
	}
	return r < 0 ? report_fail(b->r, r, "registering host memory: %s", strerror(-r)) : 0;
}

static int slots_make(struct gpu_bench *b)
{
	const uint32_t most = b->d->tasks_max < TASKS_MAX ? b->d->tasks_max : TASKS_MAX;

	b->slots = calloc(most, sizeof(*b->slots));
	b->idle = calloc(most, sizeof(struct slot *));
	b->payload_bytes = calloc(b->blocks, sizeof(*b->payload_bytes));
	b->xxh3 = calloc(b->blocks, sizeof(*b->xxh3));
	if (!b->slots || !b->idle || !b->payload_bytes || !b->xxh3)
		return report_fail(b->r, -ENOMEM, "out of memory");
	b->slots_count = most;
	while (b->idle_count < most) {
		b->idle[b->idle_count] = &b->slots[b->idle_count];
		b->idle_count++;
	}
	return 0;
}

static void bench_free(struct gpu_bench *b)
{
	if (b->from_open) {
		b->d->import->region_close(b->d, &b->from);
		device_region_deinit(&b->from);
	}
	if (b->to_open) {
		b->d->import->region_close(b->d, &b->to);
		device_region_deinit(&b->to);
	}
	if (b->host_registered && b->d->ops->host_unregister)
		b->d->ops->host_unregister(b->d, b->host, b->host_bytes);
	if (b->d)
		b->d = b->d->ops->free(b->d);
	if (b->host)
		(void)munmap(b->host, b->host_bytes);
	if (b->wake_fd >= 0)
		(void)close(b->wake_fd);
	free(b->slots);
	free(b->idle);
	free(b->payload_bytes);
	free(b->xxh3);
}

static int blocks_count(struct gpu_bench *b)
{
	const uint64_t bytes = b->in->count * b->in->g->raw_bytes;
	const uint64_t copies = b->o->copies ? b->o->copies : (b->o->bytes + bytes - 1u) / bytes;

	assert(b->in->count > 0);
	if (copies == 0 || copies > UINT32_MAX / b->in->count)
		return report_fail(b->r, -EINVAL, "not so many blocks");
	b->blocks = (uint32_t)copies * b->in->count;
	b->slot_bytes = (b->in->cap + ALIGN - 1u) & ~(uint64_t)(ALIGN - 1u);
	b->out->blocks = b->blocks;
	b->out->raw_bytes = b->blocks * b->in->g->raw_bytes;
	return 0;
}

int bench_codec_gpu(const struct codec_gpu_options *o, const struct codec_gpu_input *in,
		    struct codec_gpu_results *ret, const struct report *report)
{
	struct gpu_bench b = { .o = o, .in = in, .r = report, .out = ret };
	int r;

	*ret = (struct codec_gpu_results){ 0 };
	b.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = b.wake_fd < 0 ? report_fail(report, -errno, "eventfd: %s", strerror(errno))
			  : blocks_count(&b);
	if (r == 0)
		r = device_open(&b);
	if (r == 0)
		r = slots_make(&b);
	if (r == 0)
		r = host_make(&b);
	if (r == 0)
		r = device_memory_make(&b);
	if (r == 0)
		r = bench_run(&b);
	bench_free(&b);
	return r;
}
