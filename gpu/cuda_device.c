/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_device.c - the device that is a GPU: its creation, and the way of tasks into and out of it.  All
 * of it on the lane's thread (cuda_internal.h says what is not).
 *
 * Everything is queued on streams and asked for by events; nothing here waits, but free().  Streams have
 * the lowest priority there is, and kernels run one batch at a time in each direction: the GPU is an
 * engine's, we are guests.
 */
#include "gpu/cuda_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>

#include "gpu/clock.h"
#include "gpu/codec/format.h"

#define TASKS_MAX 65536u
#define BATCHES_POLL_MAX 2u
#define STAGING_BYTES_MIN (4u << 20)
/* A lane that sleeps on its timer wakes every 10 ms: the account holds that much, and a bit. */
#define BUDGET_BURST_NS 12000000
#define STACK_BYTES 256u /* for calls that the compiler cannot follow: there are none */
#define DRAIN_NS 5000000000ull
#define DRAIN_NAP_NS 50000

/* The symbol is found by its name; nobody includes it. */
int skvcd_cuda_device_new_v1(const struct gpu_device_options *options, struct device **ret_device,
			     char *err);

/* ---- the context, and its end ---- */

void cuda_device_enter(const struct cuda_device *d)
{
	/* Nobody else in this process uses CUDA, so what a thread was told once stays. */
	static _Thread_local int current = -1;

	if (current != d->ordinal && cudaSetDevice(d->ordinal) == cudaSuccess)
		current = d->ordinal;
}

void cuda_finish(struct cuda_device *d, struct device_task *t, int res)
{
	t->res = res;
	t->device_user = NULL;
	task_queue_push(&d->finished, t);
}

static void queue_fail(struct cuda_device *d, struct task_queue *q, int res)
{
	struct device_task *t;

	while ((t = task_queue_pop(q)))
		cuda_finish(d, t, res);
}

static void waiting_fail(struct cuda_device *d, int res)
{
	for (unsigned c = 0; c < CUDA_CLASS_COUNT; c++) {
		queue_fail(d, &d->todo[c][0], res);
		queue_fail(d, &d->todo[c][1], res);
	}
	while (d->waited) {
		struct device_event *ev = d->waited;

		d->waited = ev->next;
		ev->next = NULL;
		queue_fail(d, &ev->waiting, res);
	}
}

/* In a lost context nothing runs, so nothing touches the tasks' memory any more. */
void cuda_device_die(struct cuda_device *d)
{
	atomic_store(&d->dead, -EIO);
	cuda_flights_fail(d);
	waiting_fail(d, -EIO);
	d->eager = false;
}

/*
 * CUDA refused what says when work that is queued already ends.  The context may be alive and that work may
 * still touch the tasks' memory, so this waits for it: it blocks, once in a device's life.
 */
void cuda_device_abandon(struct cuda_device *d, int cuda_error)
{
	for (unsigned s = 0; s < CUDA_STREAM_COUNT && !gpu_error_sticky(cuda_error); s++)
		if (gpu_error_sticky((int)cudaStreamSynchronize(d->stream[s])))
			break;
	cuda_device_die(d);
}

static int cuda_device_dead(struct device *dev)
{
	return atomic_load(&cuda_device_of(dev)->dead);
}

static uint64_t cuda_device_busy_since(struct device *dev)
{
	return cuda_flights_since(cuda_device_of(dev));
}

/* ---- in ---- */

static enum cuda_class class_of(enum device_op op)
{
	switch (op) {
	case DEVICE_MOVE:
		return CUDA_CLASS_MOVE;
	case DEVICE_ENCODE:
	case DEVICE_COPY_OUT:
		return CUDA_CLASS_STORE;
	default:
		return CUDA_CLASS_LOAD;
	}
}

/* A profile without a part for `layer` means `channel`. */
static bool layer_can(struct cuda_device *d, enum cuda_class class, const struct codec_geometry *g,
		      const struct codec_profile *profile)
{
	const struct cuda_layers *l = cuda_layers_of(d, g, profile);

	return l->ok == 0 || (l->ok > 0 && l->tasks_max[class] > 0);
}

static int move_check(const struct device_task *t)
{
	if (t->copies_count == 0 || t->copies_count > DEVICE_COPIES_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < t->copies_count; i++)
		if (t->copy[i].in_place == DEVICE_PLACE_HOST &&
		    t->copy[i].out_place == DEVICE_PLACE_HOST)
			return -EINVAL;
	return 0;
}

static int start_check(struct cuda_device *d, const struct device_task *t)
{
	enum cuda_class class = class_of(t->op);
	const struct codec_geometry *g;
	const struct cuda_shape *shape;

	if (t->op >= DEVICE_FIT)
		return -EINVAL;
	if (t->op == DEVICE_MOVE)
		return move_check(t);
	assert(t->region && t->region->device_private);
	assert(t->block_index < t->region->blocks_count);
	g = t->region->geom;
	shape = cuda_shape_of(d, g);
	assert(t->skip_tokens <= g->block_tokens);
	if (t->op == DEVICE_COPY_OUT && t->out_cap_bytes < g->raw_bytes)
		return -ENOSPC;
	if (t->op == DEVICE_DECODE && (t->in_bytes == 0 || t->in_bytes > shape->bound_bytes))
		return -EINVAL;
	if (t->op == DEVICE_ENCODE && t->speculator != CODEC_SPEC_RAW &&
	    ((t->speculator != CODEC_SPEC_CHANNEL && t->speculator != CODEC_SPEC_LAYER) ||
	     !t->profile))
		return -EOPNOTSUPP;
	if (t->op == DEVICE_ENCODE && t->speculator == CODEC_SPEC_LAYER &&
	    !layer_can(d, CUDA_CLASS_STORE, g, t->profile))
		return -EOPNOTSUPP;
	if (cuda_task_bytes(d, t) > (class == CUDA_CLASS_LOAD ? d->loads.bytes : d->stores.bytes))
		return -ENOSPC;
	if ((t->op == DEVICE_ENCODE || t->op == DEVICE_DECODE) && shape->tasks_max[class] == 0)
		return -ENOSPC;
	return 0;
}

static void todo_push(struct cuda_device *d, struct device_task *t)
{
	struct task_queue *q = &d->todo[class_of(t->op)][t->background ? 1 : 0];

	t->device_user = q;
	task_queue_push(q, t);
	d->eager = true;
}

static int cuda_device_start(struct device *dev, struct device_task *t)
{
	struct cuda_device *d = cuda_device_of(dev);
	struct device_event *ev = t->ready;
	int r = atomic_load(&d->dead);

	if (r == 0)
		r = start_check(d, t);
	if (r < 0)
		return r;
	if (d->tasks_count == dev->tasks_max)
		return -EAGAIN;
	d->tasks_count++;
	t->res = 0;
	t->staged = NULL;
	t->ret_profile = NULL;
	t->busy_ns = 0;
	atomic_store_explicit(&t->segments_done, 0, memory_order_relaxed);
	if (!ev) {
		todo_push(d, t);
		return 0;
	}
	if (!ev->waiting.head) {
		ev->next = d->waited;
		d->waited = ev;
	}
	t->device_user = &ev->waiting;
	task_queue_push(&ev->waiting, t);
	d->eager = true; /* one poll has to ask */
	return 0;
}

static void waited_remove(struct cuda_device *d, const struct task_queue *waiting)
{
	for (struct device_event **link = &d->waited; *link; link = &(*link)->next)
		if (&(*link)->waiting == waiting) {
			struct device_event *ev = *link;

			*link = ev->next;
			ev->next = NULL;
			return;
		}
}

static int cuda_device_cancel(struct device *dev, struct device_task *t)
{
	struct cuda_device *d = cuda_device_of(dev);
	struct task_queue *q = t->device_user;

	if (!q)
		return 0;
	(void)task_queue_take(q, task_queue_find(q, t));
	if (!q->head)
		waited_remove(d, q);
	cuda_finish(d, t, -ECANCELED);
	return 1;
}

/* ---- poll ---- */

/* One question for each event, however many tasks wait for it. */
static void events_ask(struct cuda_device *d)
{
	struct device_event **link = &d->waited;

	while (*link) {
		struct device_event *ev = *link;
		cudaError_t e = cudaEventQuery(ev->event);
		struct device_task *t;

		if (e == cudaErrorNotReady) {
			link = &ev->next;
			continue;
		}
		if (gpu_error_sticky((int)e)) {
			cuda_device_die(d);
			return;
		}
		*link = ev->next;
		ev->next = NULL;
		if (e != cudaSuccess)
			queue_fail(d, &ev->waiting, gpu_errno((int)e));
		while ((t = task_queue_pop(&ev->waiting)))
			todo_push(d, t);
	}
}

static bool batches_launch(struct cuda_device *d, enum cuda_class class, bool background)
{
	for (unsigned i = 0; i < BATCHES_POLL_MAX; i++)
		if (!cuda_batch_launch(d, class, background))
			return false;
	return true;
}

/* What engines wait for before what may wait, and loads before stores. */
static void todo_launch(struct cuda_device *d)
{
	bool more = false;

	for (unsigned background = 0; background < 2; background++) {
		more |= batches_launch(d, CUDA_CLASS_LOAD, background);
		more |= cuda_moves_launch(d, background);
		more |= batches_launch(d, CUDA_CLASS_STORE, background);
	}
	d->eager = more;
}

static unsigned cuda_device_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct cuda_device *d = cuda_device_of(dev);
	unsigned n = 0;

	if (d->tasks_count == 0)
		return 0;
	cuda_device_enter(d);
	if (!atomic_load(&d->dead))
		cuda_flights_harvest(d);
	if (!atomic_load(&d->dead))
		events_ask(d);
	if (!atomic_load(&d->dead))
		todo_launch(d);
	if (atomic_load(&d->dead))
		cuda_device_die(d);
	while (n < max && d->finished.head)
		ret_done[n++] = task_queue_pop(&d->finished);
	assert(d->tasks_count >= n);
	d->tasks_count -= n;
	return n;
}

/*
 * Nobody writes the wake fd: a host function at the end of each batch would cost more than asking, and
 * holds up its stream.  So while anything is in the air, do not sleep.  What only waits for an engine's
 * event, for its share of the GPU's time or for unstage() lets the lane sleep: it looks again at least
 * every 10 ms while it has jobs, and that is as late as such work may be.
 */
static int cuda_device_arm(struct device *dev)
{
	struct cuda_device *d = cuda_device_of(dev);

	if (d->finished.head || d->eager)
		return 0;
	for (unsigned c = 0; c < CUDA_CLASS_COUNT; c++)
		if (d->flights_count[c] > 0)
			return 0;
	return 1;
}

static void cuda_device_disarm(struct device *dev)
{
	(void)dev;
}

static void cuda_device_unstage(struct device *dev, void *staged)
{
	struct cuda_device *d = cuda_device_of(dev);

	staging_unref(&d->stores, (uint64_t)(uintptr_t)staged);
	d->eager = d->todo[CUDA_CLASS_STORE][0].head || d->todo[CUDA_CLASS_STORE][1].head ||
		   d->eager;
}

/* ---- what can be done here ---- */

/* cuda_codec_profile_ok, and a place in the table. */
static bool profile_can(const struct cuda_device *d, const struct codec_geometry *g,
			const struct codec_profile *profile)
{
	for (uint32_t i = 0; i < d->profiles_count; i++)
		if (d->profile[i].key == profile)
			return true;
	return d->profiles_count < CUDA_PROFILES_MAX && cuda_codec_profile_ok(g, profile);
}

static int cuda_device_can_encode(struct device *dev, const struct codec_geometry *g,
				  const struct codec_profile *profile, uint8_t speculator)
{
	struct cuda_device *d = cuda_device_of(dev);
	const struct cuda_shape *s = cuda_shape_of(d, g);

	if (speculator != CODEC_SPEC_RAW && speculator != CODEC_SPEC_CHANNEL &&
	    speculator != CODEC_SPEC_LAYER)
		return 0;
	if (!s->regular || s->bound_bytes > d->stores.bytes || !s->tasks_max[CUDA_CLASS_STORE])
		return 0;
	if (speculator == CODEC_SPEC_LAYER && profile &&
	    !layer_can(d, CUDA_CLASS_STORE, g, profile))
		return 0;
	return speculator == CODEC_SPEC_RAW || (profile && profile_can(d, g, profile));
}

static int cuda_device_can_decode(struct device *dev, const struct codec_geometry *g,
				  const struct codec_profile *profile, const void *payload,
				  uint64_t payload_bytes)
{
	struct cuda_device *d = cuda_device_of(dev);
	const struct cuda_shape *s = cuda_shape_of(d, g);
	const uint8_t *in = payload;

	if (payload_bytes == 0 || payload_bytes > s->bound_bytes || !s->regular)
		return 0;
	if (payload_bytes > d->loads.bytes || !s->tasks_max[CUDA_CLASS_LOAD])
		return 0;
	/* No payload to look at: it lies in the GPU's pool, where only what it encoded is. */
	if (payload && codec_payload_needs_cpu(g, payload, payload_bytes))
		return 0;
	if (payload && !profile && in[FORMAT_SPECULATOR_OFF] >= CODEC_SPEC_CHANNEL)
		return 0;
	if (payload && in[FORMAT_SPECULATOR_OFF] == CODEC_SPEC_LAYER &&
	    cuda_layers_of(d, g, profile)->ok <= 0)
		return 0;
	/* What lies in the GPU's pool may be of `layer`, and its kernels will have a look. */
	if (profile && !layer_can(d, CUDA_CLASS_LOAD, g, profile) &&
	    (!payload || in[FORMAT_SPECULATOR_OFF] == CODEC_SPEC_LAYER))
		return 0;
	return !profile || profile_can(d, g, profile);
}

/* ---- from the first to the last ---- */

static bool device_drained(struct cuda_device *d)
{
	uint64_t until = gpu_now_ns() + DRAIN_NS;

	waiting_fail(d, -ECANCELED);
	for (;;) {
		uint32_t flights = 0;

		if (atomic_load(&d->dead))
			cuda_flights_fail(d);
		else
			cuda_flights_harvest(d);
		for (unsigned c = 0; c < CUDA_CLASS_COUNT; c++)
			flights += d->flights_count[c];
		if (flights == 0)
			return true;
		if (gpu_now_ns() > until)
			return false;
		(void)nanosleep(&(struct timespec){ .tv_nsec = DRAIN_NAP_NS }, NULL);
	}
}

/* Also undoes a half-made device. */
static struct device *cuda_device_free(struct device *dev)
{
	struct cuda_device *d = cuda_device_of(dev);

	cuda_device_enter(d);
	/* What still runs writes to memory of ours, and to give that back would wait for it: leave it. */
	if (!device_drained(d))
		return NULL;
	for (uint32_t i = 0; i < d->profiles_count; i++)
		cuda_codec_profile_free(d->profile[i].profile);
	cuda_memory_deinit(d);
	cuda_flights_free(d);
	if (d->uploaded)
		(void)cudaEventDestroy(d->uploaded);
	for (unsigned s = 0; s < CUDA_STREAM_COUNT; s++)
		if (d->stream[s])
			(void)cudaStreamDestroy(d->stream[s]);
	if (d->control)
		(void)cudaStreamDestroy(d->control);
	while (d->hosts_count > 0)
		cuda_host_unregister(dev, (void *)d->host[0].base, d->host[0].bytes);
	for (uint32_t i = 0; i < d->pools_count; i++)
		(void)cudaFree(d->pool[i]);
	if (d->staging)
		(void)cudaFree(d->staging);
	free(d);
	return NULL;
}

static void cuda_device_profile_gone(struct device *dev, const struct codec_profile *profile)
{
	struct cuda_device *d = cuda_device_of(dev);

	cuda_device_enter(d);
	for (uint32_t i = 0; i < d->profiles_count; i++)
		if (d->profile[i].key == profile) {
			cuda_codec_profile_free(d->profile[i].profile);
			d->profile[i] = d->profile[--d->profiles_count];
			return;
		}
}

static const struct device_ops cuda_device_ops = {
	.start = cuda_device_start,
	.poll = cuda_device_poll,
	.arm = cuda_device_arm,
	.disarm = cuda_device_disarm,
	.free = cuda_device_free,
	.name = "cuda",
	.cancel = cuda_device_cancel,
	.unstage = cuda_device_unstage,
	.can_encode = cuda_device_can_encode,
	.can_decode = cuda_device_can_decode,
	.host_register = cuda_host_register,
	.host_unregister = cuda_host_unregister,
	.pool_memory = cuda_pool_memory,
	.dead = cuda_device_dead,
	.busy_since = cuda_device_busy_since,
	.profile_gone = cuda_device_profile_gone,
};

static int streams_new(struct cuda_device *d)
{
	int least = 0, greatest = 0;
	int e = (int)cudaDeviceGetStreamPriorityRange(&least, &greatest);

	for (unsigned s = 0; s < CUDA_STREAM_COUNT && e == 0; s++)
		e = (int)cudaStreamCreateWithPriority(&d->stream[s], cudaStreamNonBlocking, least);
	if (e == 0)
		e = (int)cudaStreamCreateWithPriority(&d->control, cudaStreamNonBlocking, least);
	if (e == 0)
		e = (int)cudaEventCreateWithFlags(&d->uploaded, cudaEventDisableTiming);
	return e;
}

static int staging_new(struct cuda_device *d, uint64_t bytes, char *err)
{
	struct staging_cut cut = staging_cut(bytes);
	uint64_t at;
	int e = (int)cudaMalloc(&d->staging, bytes);

	if (e != 0)
		return gpu_say(err, gpu_errno(e), "no %llu bytes of GPU memory for staging: %s",
			       (unsigned long long)bytes, gpu_error_name(e));
	at = (uint64_t)(uintptr_t)d->staging;
	staging_init(&d->loads, at, cut.loads_bytes);
	at += cut.loads_bytes;
	staging_init(&d->stores, at, cut.stores_bytes);
	at += cut.stores_bytes;
	d->loads_scratch = at;
	d->loads_scratch_bytes = cut.loads_scratch_bytes;
	at += cut.loads_scratch_bytes;
	d->stores_scratch = at;
	d->stores_scratch_bytes = cut.stores_scratch_bytes;
	d->facts.staging_bytes = bytes;
	d->facts.block_bytes_max = staging_block_max(&cut);
	return 0;
}

static int device_init(struct cuda_device *d, uint64_t staging_bytes, char *err)
{
	unsigned sms = 0;
	int r, e = (int)cudaInitDevice(d->ordinal,
				       cudaDeviceScheduleBlockingSync | cudaDeviceMapHost,
				       cudaInitDeviceFlagsAreValid);

	if (e == 0)
		e = (int)cudaSetDevice(d->ordinal);
	if (e == 0)
		e = streams_new(d);
	if (e != 0)
		return gpu_say(err, gpu_error_absent(e) ? -ENOENT : gpu_errno(e),
			       "GPU %d cannot be used: %s", d->ordinal, gpu_error_name(e));
	/* Kernels say themselves what stack they need; the default for all threads takes 270 MiB of a GPU. */
	e = (int)cudaDeviceSetLimit(cudaLimitStackSize, STACK_BYTES);
	if (e == 0)
		e = cuda_codec_init(&sms);
	if (e != 0)
		return gpu_say(err, gpu_errno(e), "no codec for this GPU: %s", gpu_error_name(e));
	r = staging_new(d, staging_bytes, err);
	if (r == 0)
		r = cuda_flights_new(d, err);
	if (r == 0)
		r = cuda_memory_init(d, err);
	(void)cudaGetLastError();
	return r;
}

int skvcd_cuda_device_new_v1(const struct gpu_device_options *options, struct device **ret_device,
			     char *err)
{
	struct device_facts facts;
	struct cuda_device *d;
	uint64_t used;
	int ordinal, r;

	if (options->tasks_max == 0 || options->tasks_max > TASKS_MAX ||
	    options->background_percent == 0 || options->background_percent > 100 ||
	    options->share_percent == 0 || options->share_percent > 100 ||
	    options->staging_bytes < STAGING_BYTES_MIN)
		return gpu_say(err, -EINVAL, "tasks, shares or staging out of range");
	r = cuda_facts_choose(options->which, &ordinal, &facts, err);
	if (r < 0)
		return r;
	used = cuda_facts_used(&facts);
	d = calloc(1, sizeof(*d));
	if (!d)
		return gpu_say(err, -ENOMEM, "out of memory");
	d->base = (struct device){
		.ops = &cuda_device_ops,
		.import = &cuda_import_ops,
		.facts = &d->facts,
		.tasks_max = options->tasks_max,
	};
	d->facts = facts;
	d->ordinal = ordinal;
	d->share = (struct cuda_budget){
		.ns_max = BUDGET_BURST_NS,
		.filled_ns = gpu_now_ns(),
		.percent = options->share_percent,
	};
	d->budget = (struct cuda_budget){
		.ns_max = (int64_t)BUDGET_BURST_NS * options->background_percent / 100,
		.filled_ns = gpu_now_ns(),
		.percent = options->background_percent,
	};
	r = device_init(d, options->staging_bytes, err);
	if (r < 0) {
		cuda_device_free(&d->base);
		return r;
	}
	/* What the card lost since: ours, when nobody else took or gave at the same time. */
	if (used != 0) {
		uint64_t now = cuda_facts_used(&facts);

		d->facts.footprint_bytes = now > used ? now - used : 0;
	}
	*ret_device = &d->base;
	return 0;
}
