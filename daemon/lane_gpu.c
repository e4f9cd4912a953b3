/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane_gpu.c - the GPU as the lane has it: made at start-up and given its memory; its tasks and the host
 * memory they stage in; jobs that wait for an engine's event; its death.  What is done with it is in
 * store.c, load.c and tier_gpu.c.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "daemon/placement.h"
#include "daemon/record.h"

#define GPU_LIBRARY "libskvcd-cuda.so"
#define GPU_REGISTER_BYTES \
	(64ull << 30)		       /* the driver pins a piece with one call; larger ones fail */
#define GPU_STAGE_BYTES (128ull << 20) /* of host memory, when the pool is large enough */
#define GPU_STAGE_SLABS 2u	       /* and at least so many blocks of the largest size */
#define GPU_EVENTS_LOOK_NS 10000000ull
#define GPU_EVENT_LATE SKVC_ABI_REASON_BAD_EVENT /* with -ECANCELED: it did not come in time */

/* ---- the device ---- */

/* The shared object beside the daemon: where it was installed, or in the build's folder. */
static void library_path(const struct config *c, char *buf, size_t buf_bytes)
{
	char exe[PATH_MAX];
	ssize_t n;
	char *slash;

	if (c->gpu_library[0]) {
		(void)snprintf(buf, buf_bytes, "%s", c->gpu_library);
		return;
	}
	(void)snprintf(buf, buf_bytes, "%s", SKVCD_LIBDIR "/skvcd/" GPU_LIBRARY);
	n = access(buf, F_OK) ? readlink("/proc/self/exe", exe, sizeof(exe) - 1) : -1;
	if (n <= 0)
		return;
	exe[n] = 0;
	slash = strrchr(exe, '/');
	if (slash && (size_t)(slash - exe) + sizeof("/../lib/skvcd/" GPU_LIBRARY) <= buf_bytes)
		(void)snprintf(buf, buf_bytes, "%.*s/../lib/skvcd/" GPU_LIBRARY, (int)(slash - exe),
			       exe);
}

/* 0: made, or there is none and nobody insists. */
static int make_device(struct lane *lane, char *err, unsigned err_bytes)
{
	const struct config *c = &lane->config;
	int automatic = !strcmp(c->gpu_device, "auto"), sim = !strcmp(c->gpu_device, "sim");
	struct gpu_device_options o = {
		.which = sim ? "auto" : c->gpu_device,
		.tasks_max = LANE_GPU_TASKS,
		.wake_fd = lane->device_fd,
		.staging_bytes = c->gpu_staging_bytes,
		.share_percent = c->gpu_share_percent,
		.background_percent = c->gpu_background_percent,
	};
	char path[PATH_MAX], line[DEVICE_ERR_BYTES] = "";
	int r;

	if (!strcmp(c->gpu_device, "none"))
		return 0;
	library_path(c, path, sizeof(path));
	r = sim ? sim_device_new(&o, &lane->gpu) : cuda_load_device(path, &o, &lane->gpu, line);
	if (!line[0] && r < 0)
		(void)snprintf(line, sizeof(line), "%s", strerror(-r));
	if (automatic && r == -ENOENT) {
		log_line(LOG_LEVEL_NOTICE, "no GPU is used: %s", line);
		return 0;
	}
	if (r < 0)
		(void)snprintf(err, err_bytes, "[gpu] device = %s: %s; `none` serves without a GPU",
			       c->gpu_device, line);
	return r;
}

static int add_faults(struct lane *lane, struct device **d, char *err, unsigned err_bytes)
{
	const char *spec = lane->config.fault_gpu;
	int r;

	if (!spec[0] || !*d)
		return 0;
	r = fault_device_new(*d, spec, d);
	if (r < 0)
		(void)snprintf(err, err_bytes, "[fault] gpu = %s: %s", spec, strerror(-r));
	return r;
}

/* What runs models beside it.  Memory is taken when a model is first wanted. */
static int make_predictor(struct lane *lane, char *err, unsigned err_bytes)
{
	const struct config *c = &lane->config;
	const struct predictor_options o = {
		.which = c->gpu_device,
		.tasks_max = lane->gpu->tasks_max,
		.wake_fd = lane->device_fd,
		.batch_tokens = c->model_gpu_tokens,
		.positions_max = c->model_tokens_max,
		.background_percent = c->gpu_background_percent,
	};
	char path[PATH_MAX], line[DEVICE_ERR_BYTES] = "";
	int r;

	if (!c->model_gpu)
		return 0;
	if (c->model_tokens_max > PREDICTOR_POSITIONS_MAX) {
		log_line(LOG_LEVEL_NOTICE,
			 "models run on the CPU: a GPU has no sequences of more than %u tokens "
			 "([model] tokens_max)",
			 PREDICTOR_POSITIONS_MAX);
		return 0;
	}
	library_path(c, path, sizeof(path));
	r = !strcmp(c->gpu_device, "sim") ? sim_predictor_new(&o, &lane->predictor)
					  : cuda_load_predictor(path, &o, &lane->predictor, line);
	if (r < 0)
		(void)snprintf(err, err_bytes, "[model] gpu: %s; `no` runs models on the CPU",
			       line[0] ? line : strerror(-r));
	return r;
}

static int make_tasks(struct lane *lane)
{
	void *p;

	/* A header and the tokens of any block, each on a cache line. */
	lane->gpu_header_bytes = record_payload_off(CODEC_BLOCK_TOKENS_MAX);
	p = mmap(NULL, LANE_GPU_TASKS * lane->gpu_header_bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	lane->gpu_headers = p;
	lane->gpu_task = calloc(LANE_GPU_TASKS, sizeof(*lane->gpu_task));
	if (!lane->gpu_task)
		return -ENOMEM;
	for (uint32_t i = LANE_GPU_TASKS; i-- > 0;) {
		struct task *t = &lane->gpu_task[i];

		t->of_gpu = 1;
		t->raw_slot = POOL_NONE;
		t->staging = lane->gpu_headers + i * lane->gpu_header_bytes;
		task_put(lane, t);
	}
	return 0;
}

int gpu_start(struct lane *lane, char *err, unsigned err_bytes)
{
	uint64_t start_ns = clock_now_ns();
	int r = make_device(lane, err, err_bytes);

	if (r < 0 || !lane->gpu)
		return r;
	r = make_predictor(lane, err, err_bytes);
	if (r == 0)
		r = add_faults(lane, &lane->predictor, err, err_bytes);
	if (r == 0)
		r = add_faults(lane, &lane->gpu, err, err_bytes);
	if (r < 0)
		return r;
	/* The pool lies where the GPU's bus ends, unless somebody knows better. */
	if (lane->config.numa_node < 0 && placement_has_node(lane->gpu->facts->numa_node))
		lane->config.numa_node = lane->gpu->facts->numa_node;
	r = make_tasks(lane);
	if (r < 0)
		(void)snprintf(err, err_bytes, "memory for the GPU's tasks: %s", strerror(-r));
	lane->gpu_make_ns = clock_now_ns() - start_ns;
	stats_set(&lane->stats, STAT_GPU_HEALTH, 1);
	return r;
}

/* ---- host memory that the GPU reads and writes ---- */

static void register_memory(struct lane *lane, void *base, uint64_t bytes)
{
	for (uint64_t off = 0; off < bytes; off += GPU_REGISTER_BYTES) {
		uint64_t left = bytes - off;
		struct lane_registered piece = {
			.base = (uint8_t *)base + off,
			.bytes = left < GPU_REGISTER_BYTES ? left : GPU_REGISTER_BYTES,
		};
		int r = -ENOSPC;

		if (lane->registered_count < LANE_REGISTERED_MAX)
			r = lane->gpu->ops->host_register(lane->gpu, piece.base, piece.bytes);
		if (r == 0)
			lane->registered[lane->registered_count++] = piece;
		else
			log_line(
				LOG_LEVEL_WARNING,
				"the GPU's driver does not take %" PRIu64
				" MiB of host memory: %s; transfers are slower. Raise LimitMEMLOCK "
				"(ulimit -l)",
				piece.bytes >> 20, strerror(-r));
	}
}

static int make_stage(struct lane *lane)
{
	uint64_t slab = 1ull << 20, bytes = lane->config.pool_bytes / 4;
	struct pool_options o = {
		.granule_bytes = 4096,
		.numa_node = lane->config.numa_node,
		.lock = (int)lane->config.lock_memory,
	};

	while (slab < lane_block_bytes_max(lane))
		slab *= 2;
	bytes = bytes > GPU_STAGE_BYTES ? GPU_STAGE_BYTES : bytes;
	o.slab_bytes = slab;
	o.bytes = bytes < GPU_STAGE_SLABS * slab ? GPU_STAGE_SLABS * slab : bytes;
	return pool_new(&o, &lane->stage);
}

static void *pool_base(const struct pool *pool, uint64_t *ret_bytes)
{
	struct pool_usage u;
	struct iovec first;

	(void)pool_iovecs(pool, &first, 1);
	pool_usage(pool, &u);
	*ret_bytes = u.bytes;
	return first.iov_base;
}

static void say_hello(const struct lane *lane, uint64_t register_ns)
{
	const struct device_facts *f = lane->gpu->facts;
	char uuid[2 * DEVICE_UUID_BYTES + 1];

	for (unsigned i = 0; i < DEVICE_UUID_BYTES; i++)
		(void)snprintf(uuid + (size_t)2 * i, 3, "%02x", f->uuid[i]);
	log_line(LOG_LEVEL_NOTICE,
		 "GPU %.*s, GPU-%.8s-%.4s-%.4s-%.4s-%.12s: pool %" PRIu64 " MiB, staging %" PRIu64
		 " MiB, footprint beside the pool %" PRIu64
		 " MiB; made in %.2f s, host memory registered in %.2f s",
		 (int)sizeof(f->model), f->model, uuid, uuid + 8, uuid + 12, uuid + 16, uuid + 20,
		 lane->config.gpu_pool_bytes >> 20, f->staging_bytes >> 20,
		 f->footprint_bytes >> 20, (double)lane->gpu_make_ns / 1e9,
		 (double)register_ns / 1e9);
}

int gpu_start_memory(struct lane *lane, char *err, unsigned err_bytes)
{
	uint64_t start_ns, bytes;
	void *base;
	int r;

	if (!lane->gpu)
		return 0;
	r = make_stage(lane);
	if (r < 0) {
		(void)snprintf(err, err_bytes,
			       "host memory to stage the GPU's blocks in: %s; raise LimitMEMLOCK "
			       "(ulimit -l), or set [gpu] device = none",
			       strerror(-r));
		return r;
	}
	r = tier_gpu_start(lane, err, err_bytes);
	if (r < 0)
		return r;
	start_ns = clock_now_ns();
	base = pool_base(lane->pool, &bytes);
	register_memory(lane, base, bytes);
	base = pool_base(lane->stage, &bytes);
	register_memory(lane, base, bytes);
	register_memory(lane, lane->gpu_headers, LANE_GPU_TASKS * lane->gpu_header_bytes);
	say_hello(lane, clock_now_ns() - start_ns);
	return 0;
}

/* Also undoes a half-made one.  The pools that were registered are there still. */
void gpu_stop(struct lane *lane)
{
	while (lane->registered_count) {
		struct lane_registered *piece = &lane->registered[--lane->registered_count];

		lane->gpu->ops->host_unregister(lane->gpu, piece->base, piece->bytes);
	}
	if (lane->predictor)
		lane->predictor = lane->predictor->ops->free(lane->predictor);
	if (lane->gpu)
		lane->gpu = lane->gpu->ops->free(lane->gpu);
	lane->stage = pool_free(lane->stage);
	free(lane->gpu_task);
	lane->gpu_task = NULL;
	if (lane->gpu_headers)
		munmap(lane->gpu_headers, LANE_GPU_TASKS * lane->gpu_header_bytes);
}

/* ---- tasks ---- */

struct task *gpu_task_get(struct lane *lane)
{
	return task_queue_pop(&lane->gpu_tasks_free);
}

/* Memory behind an event that may never come is at most half, so that others always go on. */
int gpu_raw_get(struct lane *lane, struct task *t)
{
	const struct job *job = t->job;
	const struct codec_geometry *g = &job->ns->geom;
	struct pool_usage u;

	assert(t->raw_slot == POOL_NONE);
	pool_usage(lane->stage, &u);
	if (job->event == JOB_EVENT_DUE && lane->stage_waiting_bytes + g->raw_bytes > u.bytes / 2)
		return -EAGAIN;
	if (pool_alloc(lane->stage, g->raw_bytes, 0, &t->raw_slot) < 0) {
		t->raw_slot = POOL_NONE;
		return -EAGAIN;
	}
	t->packed = device_region_packed(g, gpu_raw_ptr(lane, t));
	return 0;
}

void gpu_raw_put(struct lane *lane, struct task *t)
{
	if (t->raw_slot == POOL_NONE)
		return;
	pool_release(lane->stage, t->raw_slot);
	t->raw_slot = POOL_NONE;
}

uint8_t *gpu_raw_ptr(const struct lane *lane, const struct task *t)
{
	return pool_ptr(lane->stage, t->raw_slot);
}

void gpu_unstage(struct lane *lane, struct task *t)
{
	if (!t->staged)
		return;
	lane->gpu->ops->unstage(lane->gpu, t->staged);
	t->staged = NULL;
}

/* ---- events ---- */

/* Of tasks, too, half are for who need not wait, however many sessions there are. */
int gpu_event_allows(const struct lane *lane, const struct job *job)
{
	if (job->event == JOB_EVENT_WAITING)
		return 0;
	return job->event != JOB_EVENT_DUE ||
	       (!job->inflight && job->session->events_waiting < LANE_EVENTS_WAITING_MAX &&
		lane->events_waiting < LANE_GPU_TASKS / 2u);
}

void gpu_event_begin(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	assert(!t->waits && job->event != JOB_EVENT_WAITING);
	t->dev.ready = NULL;
	if (job->event != JOB_EVENT_DUE)
		return;
	t->dev.ready = job->ready->event;
	t->waits = 1;
	job->event = JOB_EVENT_WAITING;
	job->session->events_waiting++;
	lane->events_waiting++;
	if (t->raw_slot != POOL_NONE)
		lane->stage_waiting_bytes += job->ns->geom.raw_bytes;
}

void gpu_event_end(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	if (!t->waits)
		return;
	assert(job->event == JOB_EVENT_WAITING && job->session->events_waiting > 0);
	t->waits = 0;
	job->event = t->dev.res == 0 ? JOB_EVENT_PASSED : JOB_EVENT_DUE;
	job->session->events_waiting--;
	lane->events_waiting--;
	if (t->raw_slot != POOL_NONE)
		lane->stage_waiting_bytes -= job->ns->geom.raw_bytes;
}

static int touches_pages(const struct task *t)
{
	return t->kind == TASK_COPY_OUT || t->kind == TASK_ENCODE || t->kind == TASK_DECODE ||
	       t->kind == TASK_COPY_IN;
}

void gpu_cancel_job(struct lane *lane, const struct job *job)
{
	/* A session that ends may have thousands of jobs, of which few have tasks. */
	if (!lane->gpu || lane->gpu_dead || !job->inflight)
		return;
	for (uint32_t i = 0; i < LANE_GPU_TASKS; i++) {
		struct task *t = &lane->gpu_task[i];

		if (t->job == job && t->device == lane->gpu && touches_pages(t))
			(void)lane->gpu->ops->cancel(lane->gpu, &t->dev);
	}
}

/* Jobs whose event did not come: given up, whether a task of theirs waits or none could yet. */
static unsigned run_deadlines(struct lane *lane)
{
	unsigned n = 0;

	if (!lane->events_waiting || lane->now_ns < lane->events_next_ns)
		return 0;
	lane->events_next_ns = lane->now_ns + GPU_EVENTS_LOOK_NS;
	for (uint32_t i = 0; i < LANE_JOBS_MAX; i++) {
		struct job *job = &lane->job[i];

		if (job->state == JOB_FREE || job->aborted ||
		    (job->event != JOB_EVENT_DUE && job->event != JOB_EVENT_WAITING) ||
		    lane->now_ns - job->intake_ns < lane->config.event_wait_ns)
			continue;
		job_cancel(lane, job, GPU_EVENT_LATE);
		n++;
	}
	return n;
}

/* ---- death ---- */

int gpu_refuses(const struct lane *lane, const struct region *region)
{
	return region->device && (!lane->gpu || lane->gpu_dead);
}

static void watch_health(struct lane *lane)
{
	int r = lane->gpu_dead ? 0 : lane->gpu->ops->dead(lane->gpu);

	if (!r)
		return;
	lane->gpu_dead = r;
	lane->lost_next = 0;
	stats_set(&lane->stats, STAT_GPU_HEALTH, 2);
	(void)mailbox_send(&lane->outbox, &(struct mail){ .type = LANE_GPU_HEALTH, .res = r });
}

/*
 * A GPU that neither ends what it was given nor fails may write to engines' pages whenever it comes to:
 * only the end of this process takes them from it.
 */
static void watch_hang(const struct lane *lane, struct device *d)
{
	uint64_t since = d && d->ops->busy_since && !lane->gpu_dead ? d->ops->busy_since(d) : 0;

	if (since == 0 || lane->now_ns < since || lane->now_ns - since < lane->config.gpu_wait_ns)
		return;
	log_line(
		LOG_LEVEL_ERR,
		"the GPU hangs: for %" PRIu64 " s it has not ended what it was given "
		"([limits] gpu_wait); the daemon ends, so that it cannot touch engines' pages later",
		(lane->now_ns - since) / 1000000000u);
	_exit(1);
}

unsigned gpu_run(struct lane *lane)
{
	if (!lane->gpu)
		return 0;
	watch_health(lane);
	watch_hang(lane, lane->gpu);
	watch_hang(lane, lane->predictor);
	return run_deadlines(lane) + tier_gpu_run(lane);
}
