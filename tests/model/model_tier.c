/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_tier.c - a random schedule of operations, aborts, client crashes, daemon crashes, I/O faults and
 * file corruption against a real daemon, checked against reference.h.  What must hold at every step:
 *
 *  - a block that is reported as loaded has a content that was stored under its key and not dropped since
 *  - what was dropped is not found; what is pinned stays
 *  - each job completes once, each lease is there until it is released, and the daemon's counters agree
 *  - when all is dropped, nothing is left: no block, no byte, no slot, no lease, no job
 *
 * model_tier [--seed N] [--steps N] [--seconds N]; the same seed makes the same schedule, as far as the
 * daemon's timing allows.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/daemon_stats.h"
#include "tests/lib/engine.h"
#include "tests/lib/private_daemon.h"
#include "tests/lib/rng.h"
#include "tests/model/reference.h"

#define ENGINES 3u
#define JOBS_PER_ENGINE 4u
#define LEASES_PER_ENGINE 6u
#define CRASHERS 2u
#define OWN_CHAINS (REFERENCE_CHAINS - CRASHERS) /* the last ones belong to the crashers */
#define TIER_BYTES (24u << 20)
#define QUOTA_BYTES (10u << 20) /* compressed */
#define WAIT_MS 120000u		/* a bound in time is only about hanging */
#ifdef SKVCD_SAN
#define STEPS 300u
#define ROUNDS 3u
#else
#define STEPS 1000u
#define ROUNDS 5u
#endif

/* Anything wrong ends the program at once, with the seed and the step to repeat it. */
#define CHECK(condition, ...)                                                           \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			fprintf(stderr, __VA_ARGS__);                                   \
			model_failed();                                                 \
		}                                                                       \
	} while (0)

struct model_lease {
	uint64_t handle; /* 0: none */
	uint32_t chain, count;
	uint8_t possible[REFERENCE_POSITIONS]; /* as of the lookup */
};

struct model_job {
	uint64_t handle; /* 0: none */
	int is_load;
	int is_duplicate; /* a store of what is there and pinned */
	int aborted;
	uint32_t chain, first, count, version;
	uint64_t bitmap;
	uint8_t possible[REFERENCE_POSITIONS]; /* load: of block first + i */
};

struct model_engine {
	struct engine e;
	struct model_job job[JOBS_PER_ENGINE];
	struct model_lease lease[LEASES_PER_ENGINE];
};

static struct private_daemon daemon_;
static struct reference reference;
static struct model_engine engines[ENGINES];
static pid_t crasher[CRASHERS];
static struct rng rng;
static uint64_t seed, step;
static const char *fault;
static uint64_t quota_bytes; /* 0: none */
static unsigned long blocks_stored, blocks_loaded, blocks_missed, crashes, restarts;

__attribute__((noreturn)) static void model_failed(void)
{
	fprintf(stderr, "model_tier: seed %llu, step %llu, faults \"%s\"\n",
		(unsigned long long)seed, (unsigned long long)step, fault);
	private_daemon_print_log(&daemon_);
	exit(1);
}

static void start_daemon(int again)
{
	static char fault_text[160], uid_text[64], quota_text[64];
	/* channel: nothing may be coded again while the books are read; normal: or a fit waits for a free core. */
	const char *const overrides[] = { fault_text,
					  "codec.speculator=channel",
					  "profile.priority=normal",
					  uid_text,
					  quota_text,
					  "nvme.retry=50ms",
					  "nvme.deadline=5s",
					  "limits.store_wait=200ms",
					  NULL };
	int r;

	(void)snprintf(uid_text, sizeof(uid_text), "tenant model.uid=%u", (unsigned)getuid());
	(void)snprintf(quota_text, sizeof(quota_text), "tenant model.quota=%llu",
		       (unsigned long long)quota_bytes);
	(void)snprintf(fault_text, sizeof(fault_text), "fault.nvme=%s", fault);
	r = again ? private_daemon_restart(&daemon_, TIER_BYTES, overrides)
		  : private_daemon_start(&daemon_, TIER_BYTES, overrides);
	CHECK(r == 0, "skvcd does not start: %s\n", strerror(-r));
}

static int open_engine(struct engine *e)
{
	/* 128 KiB a block, 352 keys: 44 MiB against 16 of pool and 24 of file. */
	struct engine_options o = { .seed = 1,
				    .model = "model",
				    .layers = 8,
				    .heads = 4,
				    .blocks = JOBS_PER_ENGINE * REFERENCE_POSITIONS };

	return engine_open(e, daemon_.socket, &o);
}

static uint8_t *job_pages(const struct model_engine *m, const struct model_job *job)
{
	return engine_page(&m->e, (uint32_t)(job - m->job) * REFERENCE_POSITIONS);
}

/* ---- completions ---- */

static void check_loaded(const struct model_engine *m, const struct model_job *job)
{
	for (uint32_t i = 0; i < job->count; i++) {
		const uint8_t *page = job_pages(m, job) + i * m->e.data.block_bytes;
		int known = 0;

		if (!(job->bitmap >> i & 1)) {
			blocks_missed++;
			continue;
		}
		for (uint32_t v = 0; v < REFERENCE_VERSIONS && !known; v++)
			known = (job->possible[i] >> v & 1) &&
				!kv_data_compare(&m->e.data,
						 reference_content(job->chain, job->first + i, v),
						 page);
		CHECK(known, "WRONG BYTES: chain %u position %u, possible versions 0x%x\n",
		      job->chain, job->first + i, job->possible[i]);
		blocks_loaded++;
	}
}

static void check_result(const struct model_job *job, const struct skvc_completion *c)
{
	uint32_t marked = (uint32_t)__builtin_popcountll(job->bitmap);

	switch (c->res) {
	case 0:
		CHECK(marked == job->count, "success, but %u of %u blocks are marked\n", marked,
		      job->count);
		break;
	case -ECANCELED:
		CHECK(job->aborted, "cancelled, and nobody asked for it\n");
		break;
	case -EAGAIN:
		break;
	case -EEXIST:
	case -EDQUOT:
		CHECK(!job->is_load, "a load says %s\n", strerror(-c->res));
		break;
	case -ENODATA:
	case -EIO:
	case -ENOENT:
	case -ESTALE: /* the lease's owner released it before this entry was taken */
		CHECK(job->is_load, "a store says %s\n", strerror(-c->res));
		break;
	case -EPIPE:
		break;
	default:
		CHECK(0, "unexpected result %d (%s), reason %s\n", c->res, strerror(-c->res),
		      skvc_reason_name(c->reason));
	}
	if (c->res != -EPIPE)
		CHECK(c->count == marked, "count %u, bitmap has %u\n", c->count, marked);
}

static void job_done(struct model_engine *m, struct model_job *job, const struct skvc_completion *c)
{
	check_result(job, c);
	if (job->is_load) {
		if (c->res != -EPIPE)
			check_loaded(m, job);
	} else if (job->is_duplicate) {
		CHECK(c->res == 0, "storing again what is pinned: %s\n", strerror(-c->res));
	} else {
		reference_store_end(&reference, job->chain, job->first, job->count);
		blocks_stored += c->count;
	}
	job->handle = 0;
}

static struct model_job *find_job(struct model_engine *m, uint64_t handle)
{
	for (uint32_t i = 0; i < JOBS_PER_ENGINE; i++)
		if (m->job[i].handle == handle)
			return &m->job[i];
	CHECK(0, "a completion of no job of ours: %llx\n", (unsigned long long)handle);
}

/* Take what has come.  Returns -EPIPE once the daemon is gone and all is taken. */
static int reap(struct model_engine *m)
{
	struct skvc_completion c[8];
	int n;

	while ((n = skvc_poll(m->e.session, c, 8)) > 0) {
		for (int i = 0; i < n; i++) {
			struct model_job *job = find_job(m, c[i].job);

			if (c[i].event == SKVC_EVENT_DONE)
				job_done(m, job, &c[i]);
			else /* the pages are ours again: what was stored must not change */
				memset(job_pages(m, job), 0xdd, job->count * m->e.data.block_bytes);
		}
	}
	CHECK(n == 0 || n == -EPIPE, "skvc_poll: %s\n", strerror(-n));
	return n;
}

static void finish_jobs(struct model_engine *m)
{
	for (uint32_t i = 0; i < JOBS_PER_ENGINE; i++) {
		uint64_t handle = m->job[i].handle;
		int r = handle ? skvc_wait(m->e.session, &handle, 1, WAIT_MS * 1000000ull) : 0;

		CHECK(r == 0, "a job of %u blocks hangs: %s\n", m->job[i].count, strerror(-r));
		CHECK(reap(m) == 0, "the daemon is gone\n");
	}
}

static int finish(struct model_engine *m, uint64_t job, struct skvc_completion *ret)
{
	int r = engine_finish(&m->e, job, ret);

	CHECK(r == 0, "%s\n", strerror(-r));
	return ret->res;
}

/* ---- steps ---- */

static struct model_job *free_job(struct model_engine *m)
{
	for (uint32_t i = 0; i < JOBS_PER_ENGINE; i++)
		if (!m->job[i].handle)
			return &m->job[i];
	return NULL;
}

static void make_keys(const struct model_engine *m, uint32_t chain, uint32_t first, uint32_t count,
		      struct skvc_key *ret)
{
	for (uint32_t i = 0; i < count; i++)
		ret[i] = engine_key(&m->e, chain, first + i);
}

static void make_pages(const struct model_engine *m, const struct model_job *job, uint32_t *ret)
{
	for (uint32_t i = 0; i < job->count; i++)
		ret[i] = (uint32_t)(job - m->job) * REFERENCE_POSITIONS + i;
}

static void random_run(struct model_job *job, uint32_t chains)
{
	job->chain = rng_below(&rng, chains);
	job->first = rng_one_in(&rng, 3) ? rng_below(&rng, REFERENCE_POSITIONS) : 0;
	job->count = 1 + rng_below(&rng, REFERENCE_POSITIONS - job->first);
}

static int submit_store(struct model_engine *m, struct model_job *job)
{
	struct skvc_key keys[REFERENCE_POSITIONS], parent;
	uint32_t pages[REFERENCE_POSITIONS] = { 0 };
	struct skvc_store args = {
		.ns = m->e.ns, .region = m->e.region, .keys = keys, .blocks = pages
	};
	int r;

	make_keys(m, job->chain, job->first, job->count, keys);
	make_pages(m, job, pages);
	for (uint32_t i = 0; i < job->count; i++)
		kv_data_fill(&m->e.data,
			     reference_content(job->chain, job->first + i, job->version),
			     engine_page(&m->e, pages[i]));
	args.count = job->count;
	args.ret_bitmap = &job->bitmap;
	if (job->first) {
		parent = engine_key(&m->e, job->chain, job->first - 1);
		args.parent = &parent;
	}
	r = skvc_store(m->e.session, &args, &job->handle);
	CHECK(r == 0 || r == -EAGAIN, "skvc_store: %s\n", strerror(-r));
	if (r < 0)
		job->handle = 0;
	return r;
}

static void step_store(struct model_engine *m)
{
	struct model_job *job = free_job(m);

	if (!job)
		return;
	*job = (struct model_job){ .version = rng_below(&rng, REFERENCE_VERSIONS) };
	random_run(job, OWN_CHAINS);
	reference_store_begin(&reference, job->chain, job->first, job->count, job->version);
	if (submit_store(m, job) < 0)
		reference_store_end(&reference, job->chain, job->first, job->count);
}

/* All of this run is there and stays: to store it again says so, and keeps what was there.  The new content
 * never becomes possible, so that a later load finds out. */
static void store_again(struct model_engine *m, const struct model_job *run)
{
	struct model_job *job = free_job(m);

	if (!job)
		return;
	*job = *run;
	job->is_duplicate = 1;
	job->version = rng_below(&rng, REFERENCE_VERSIONS);
	if (submit_store(m, job) == 0)
		finish_jobs(m);
}

static void step_lookup(struct model_engine *m)
{
	struct model_lease *lease = &m->lease[rng_below(&rng, LEASES_PER_ENGINE)];
	uint32_t chain = rng_below(&rng, REFERENCE_CHAINS);
	uint32_t count = 1 + rng_below(&rng, REFERENCE_POSITIONS), most = 0;
	struct skvc_completion c;
	uint64_t job;
	int r;

	if (lease->handle)
		return;
	for (unsigned i = 0; i < 4 && !reference_prefix_max(&reference, chain, 1); i++)
		chain = rng_below(&rng, REFERENCE_CHAINS); /* rather something that may be there */
	reference_snapshot(&reference, chain, count, lease->possible);
	most = reference_prefix_max(&reference, chain, count);
	r = engine_submit_lookup(&m->e, chain, count, &job);
	CHECK(r == 0, "skvc_lookup: %s\n", strerror(-r));
	r = finish(m, job, &c);
	CHECK(r == 0 || r == -ENOENT, "lookup: %s\n", strerror(-r));
	CHECK((r == 0) == (c.count > 0), "lookup: %d with %u blocks\n", r, c.count);
	CHECK(c.count <= most, "chain %u: found %u blocks, at most %u can be there\n", chain,
	      c.count, most);
	CHECK(c.pending <= c.count, "%u of %u pending\n", c.pending, c.count);
	if (r < 0)
		return;
	lease->handle = c.lease;
	lease->chain = chain;
	lease->count = c.count;
}

static void release(struct model_engine *m, struct model_lease *lease)
{
	struct skvc_completion c;
	uint64_t job;
	int r = skvc_release(m->e.session, lease->handle, &job);

	CHECK(r == 0, "skvc_release: %s\n", strerror(-r));
	r = finish(m, job, &c);
	CHECK(r == 0, "a lease of 30 s is gone: %s\n", strerror(-r));
	lease->handle = 0;
}

static void step_release(struct model_engine *m)
{
	struct model_lease *lease = &m->lease[rng_below(&rng, LEASES_PER_ENGINE)];

	if (lease->handle)
		release(m, lease);
}

/* Of any engine: they are one tenant. */
static const struct model_lease *random_lease(void)
{
	const struct model_lease *lease = NULL;

	for (unsigned i = 0; i < 12 && (!lease || !lease->handle); i++)
		lease = &engines[rng_below(&rng, ENGINES)]
				 .lease[rng_below(&rng, LEASES_PER_ENGINE)];
	return lease;
}

static void step_load(struct model_engine *m)
{
	const struct model_lease *lease = random_lease();
	uint32_t pages[REFERENCE_POSITIONS];
	struct model_job *job = free_job(m);
	struct skvc_load args = { .lease = lease->handle, .region = m->e.region, .blocks = pages };
	int r;

	if (!job || !lease->handle)
		return;
	*job = (struct model_job){ .is_load = 1, .chain = lease->chain };
	job->first = rng_below(&rng, lease->count);
	job->count = 1 + rng_below(&rng, lease->count - job->first);
	memcpy(job->possible, lease->possible + job->first, job->count);
	make_pages(m, job, pages);
	memset(job_pages(m, job), 0xa5, job->count * m->e.data.block_bytes);
	args.first = job->first;
	args.count = job->count;
	args.ret_bitmap = &job->bitmap;
	r = skvc_load(m->e.session, &args, &job->handle);
	if (r < 0) {
		CHECK(r == -EAGAIN, "skvc_load: %s\n", strerror(-r));
		job->handle = 0;
	}
}

static void drop(struct model_engine *m, uint32_t chain, uint32_t first, uint32_t count)
{
	struct skvc_key keys[REFERENCE_POSITIONS];
	struct skvc_completion c;
	uint64_t job;
	int r;

	make_keys(m, chain, first, count, keys);
	r = skvc_drop(m->e.session, m->e.ns, keys, count, &job);
	CHECK(r == 0, "skvc_drop: %s\n", strerror(-r));
	r = finish(m, job, &c);
	CHECK(r == 0, "drop: %s\n", strerror(-r));
	reference_dropped(&reference, chain, first, count);
}

static void step_drop(struct model_engine *m)
{
	struct model_job run;

	random_run(&run, OWN_CHAINS);
	drop(m, run.chain, run.first, run.count);
}

static uint32_t keys_call(struct model_engine *m, const struct skvc_key *keys, uint32_t count,
			  uint64_t pin_ns, int is_pin)
{
	struct skvc_completion c;
	uint64_t job;
	int r = is_pin ? skvc_pin(m->e.session, m->e.ns, keys, count, pin_ns, &job)
		       : skvc_touch(m->e.session, m->e.ns, keys, count, &job);

	CHECK(r == 0, "touch or pin: %s\n", strerror(-r));
	r = finish(m, job, &c);
	CHECK(r == 0 || r == -ENOENT, "touch or pin: %s\n", strerror(-r));
	return c.count;
}

/* Pin what is there of a run, store against it, and see that as much is still there. */
static void step_pin(struct model_engine *m)
{
	struct skvc_key keys[REFERENCE_POSITIONS];
	struct model_job run = { 0 };
	uint32_t before, after;

	random_run(&run, OWN_CHAINS);
	if (reference_pending(&reference, run.chain, run.first, run.count))
		return;
	make_keys(m, run.chain, run.first, run.count, keys);
	before = keys_call(m, keys, run.count, 60000000000ull, 1);
	/* Corrupt or unreadable records are lost, pinned or not. */
	if (before == run.count && !*fault)
		store_again(m, &run);
	for (unsigned i = 0; i < 3; i++)
		step_store(&engines[rng_below(&rng, ENGINES)]);
	after = keys_call(m, keys, run.count, 0, 0);
	if (!*fault && !reference_pending(&reference, run.chain, run.first, run.count))
		CHECK(after == before, "%u blocks were pinned, %u are there\n", before, after);
	(void)keys_call(m, keys, run.count, 0, 1);
}

static void step_abort(struct model_engine *m)
{
	struct model_job *job = &m->job[rng_below(&rng, JOBS_PER_ENGINE)];
	struct skvc_completion c;
	uint64_t handle = job->handle;
	size_t bytes = job->count * m->e.data.block_bytes;
	int r;

	if (!handle)
		return;
	job->aborted = 1;
	r = skvc_abort(m->e.session, handle);
	CHECK(r == 0, "skvc_abort: %s\n", strerror(-r));
	r = skvc_result(m->e.session, handle, &c);
	CHECK(r == 0, "skvc_result after an abort: %s\n", strerror(-r));
	job_done(m, job, &c);
	memset(job_pages(m, job), 0x33, bytes);
	for (size_t i = 0; i < bytes; i += 61)
		CHECK(job_pages(m, job)[i] == 0x33, "a page was written after the abort\n");
}

static void step_reopen(struct model_engine *m)
{
	for (uint32_t i = 0; i < JOBS_PER_ENGINE; i++)
		if (m->job[i].handle && !m->job[i].is_load && !m->job[i].is_duplicate)
			reference_store_end(&reference, m->job[i].chain, m->job[i].first,
					    m->job[i].count);
	engine_close(&m->e);
	memset(m->job, 0, sizeof(m->job));
	memset(m->lease, 0, sizeof(m->lease));
	CHECK(open_engine(&m->e) == 0, "cannot connect again\n");
}

/* ---- crashes ---- */

static void crash_client(uint32_t chain, uint64_t its_seed)
{
	struct skvc_completion found, c;
	struct engine e;
	struct rng r;

	rng_init(&r, its_seed);
	if (open_engine(&e) < 0)
		_exit(1);
	for (;;) {
		uint32_t first = rng_below(&r, REFERENCE_POSITIONS);
		uint64_t bitmap[ENGINE_BLOCKS_MAX / 64], job;

		(void)engine_store(&e, chain, first, 1 + rng_below(&r, REFERENCE_POSITIONS - first),
				   &c);
		if (engine_lookup(&e, rng_below(&r, REFERENCE_CHAINS), REFERENCE_POSITIONS,
				  &found) < 0)
			continue;
		/* Finished, or its pages would change under the next store. */
		if (engine_submit_load(&e, found.lease, 0, found.count, bitmap, &job) == 0 &&
		    engine_finish(&e, job, &c) < 0)
			_exit(1);
		if (rng_one_in(&r, 2))
			(void)engine_release(&e, found.lease);
	}
}

static void stop_crasher(unsigned i)
{
	int status;

	if (!crasher[i])
		return;
	(void)kill(crasher[i], SIGKILL);
	CHECK(waitpid(crasher[i], &status, 0) == crasher[i], "waitpid\n");
	CHECK(WIFSIGNALED(status), "a client ended by itself: 0x%x\n", (unsigned)status);
	crasher[i] = 0;
	crashes++;
}

/* Start one, or kill -9 the one that runs. */
static void step_crasher(void)
{
	unsigned i = rng_below(&rng, CRASHERS);
	uint32_t chain = OWN_CHAINS + i;

	if (crasher[i]) {
		stop_crasher(i);
		return;
	}
	/* engine_store() writes version 0 only; nobody else stores there. */
	for (uint32_t p = 0; p < REFERENCE_POSITIONS; p++)
		reference.key[chain][p].possible |= reference.key[chain][p].ever |= 1;
	(void)fflush(NULL);
	crasher[i] = fork();
	CHECK(crasher[i] >= 0, "fork\n");
	if (crasher[i] == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		crash_client(chain, seed + step);
	}
}

static void step_kill_daemon(void)
{
	for (unsigned i = 0; i < CRASHERS; i++)
		stop_crasher(i);
	private_daemon_sleep_ms(30); /* the note of a drop is written in the turns that follow it */
	private_daemon_kill(&daemon_, SIGKILL);
	for (unsigned i = 0; i < ENGINES; i++) {
		uint64_t until = private_daemon_now_ns() + WAIT_MS * 1000000ull;

		while (reap(&engines[i]) != -EPIPE)
			CHECK(private_daemon_now_ns() < until, "the death went unnoticed\n");
		for (unsigned k = 0; k < JOBS_PER_ENGINE; k++)
			CHECK(!engines[i].job[k].handle, "a job has not completed\n");
		memset(engines[i].lease, 0, sizeof(engines[i].lease));
	}
	reference_restarted(&reference, *fault != 0);
	start_daemon(1);
	for (unsigned i = 0; i < ENGINES; i++) {
		int r = skvc_reconnect(engines[i].e.session);

		CHECK(r == 0, "skvc_reconnect: %s\n", skvc_last_error(engines[i].e.session));
	}
	restarts++;
}

/* Through O_DIRECT, as the daemon writes: the kernel answers a mix with errors of its own. */
static void step_corrupt(void)
{
	static _Alignas(4096) uint8_t page[4096];
	int fd = open(daemon_.nvme, O_RDWR | O_DIRECT | O_CLOEXEC);

	CHECK(fd >= 0, "%s\n", daemon_.nvme);
	for (unsigned i = 0; i < 8; i++) {
		off_t at = (off_t)rng_below(&rng, TIER_BYTES / sizeof(page)) * (off_t)sizeof(page);

		if (at < 65536) /* both copies of the first block: the file would be refused */
			continue;
		if (pread(fd, page, sizeof(page), at) < 0)
			perror(daemon_.nvme);
		page[rng_below(&rng, sizeof(page))] ^= 0x10;
		if (pwrite(fd, page, sizeof(page), at) < 0)
			perror(daemon_.nvme);
	}
	(void)close(fd);
}

/* ---- the daemon's books ---- */

static unsigned leases_held(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < ENGINES; i++)
		for (unsigned k = 0; k < LEASES_PER_ENGINE; k++)
			n += engines[i].lease[k].handle != 0;
	return n;
}

static void check_books(void)
{
	for (unsigned i = 0; i < CRASHERS; i++)
		stop_crasher(i);
	for (unsigned i = 0; i < ENGINES; i++)
		finish_jobs(&engines[i]);
	CHECK(daemon_stats_wait(&daemon_, "sessions", ENGINES, WAIT_MS) >= 0, "the dead stay\n");
	CHECK(daemon_stats_get("leases") == leases_held(), "%u leases, %u are ours\n",
	      (unsigned)daemon_stats_get("leases"), leases_held());
	/* A completion is seen before the lane has put its job away; a fit runs in the background. */
	CHECK(daemon_stats_wait(&daemon_, "jobs", 0, WAIT_MS) >= 0, "jobs are left\n");
	CHECK(daemon_stats_wait(&daemon_, "device_inflight", 0, WAIT_MS) >= 0, "tasks are left\n");
	CHECK(daemon_stats_get("blocks") <= REFERENCE_CHAINS * REFERENCE_POSITIONS,
	      "more blocks than keys\n");
	CHECK(daemon_stats_get("raw_bytes") ==
		      daemon_stats_get("blocks") * engines[0].e.data.block_bytes,
	      "raw bytes and blocks differ\n");
	CHECK(daemon_stats_get("pool_used_bytes") <= daemon_stats_get("pool_slot_bytes") &&
		      daemon_stats_get("pool_slot_bytes") <= daemon_stats_get("pool_slab_bytes") &&
		      daemon_stats_get("pool_slab_bytes") <= daemon_stats_get("pool_bytes"),
	      "the pool holds more than itself\n");
	CHECK(!quota_bytes || daemon_stats_get("coded_bytes") <= quota_bytes,
	      "%llu bytes against a quota of %llu\n",
	      (unsigned long long)daemon_stats_get("coded_bytes"), (unsigned long long)quota_bytes);
	CHECK(daemon_stats_get("blocks_host") + daemon_stats_get("blocks_nvme") >=
		      daemon_stats_get("blocks"),
	      "blocks that lie nowhere\n");
	if (!*fault)
		CHECK(daemon_stats_get("nvme_errors") == 0, "I/O errors without a fault\n");
}

static void check_nothing_is_left(void)
{
	for (unsigned i = 0; i < ENGINES; i++)
		for (unsigned k = 0; k < LEASES_PER_ENGINE; k++)
			if (engines[i].lease[k].handle)
				release(&engines[i], &engines[i].lease[k]);
	check_books();
	for (uint32_t chain = 0; chain < REFERENCE_CHAINS; chain++)
		drop(&engines[0], chain, 0, REFERENCE_POSITIONS);
	CHECK(daemon_stats_wait(&daemon_, "nvme_inflight", 0, 5000) >= 0, "I/O does not end\n");
	for (unsigned i = 0; i < 9; i++) {
		static const char *const gauge[] = { "blocks",		"blocks_host",
						     "blocks_nvme",	"raw_bytes",
						     "coded_bytes",	"pool_used_bytes",
						     "pool_slot_bytes", "nvme_live_bytes",
						     "leases" };

		CHECK(daemon_stats_get(gauge[i]) == 0, "all is dropped, but %s is %llu\n", gauge[i],
		      (unsigned long long)daemon_stats_get(gauge[i]));
	}
}

/* ---- the schedule ---- */

static void one_step(void)
{
	struct model_engine *m = &engines[rng_below(&rng, ENGINES)];
	uint32_t what = rng_below(&rng, 1000);

	CHECK(!private_daemon_died(&daemon_), "skvcd died\n");
	CHECK(reap(m) == 0, "the session ended: %s\n", skvc_last_error(m->e.session));
	if (what < 280)
		step_store(m);
	else if (what < 460)
		step_lookup(m);
	else if (what < 700)
		step_load(m);
	else if (what < 800)
		step_release(m);
	else if (what < 825)
		step_drop(m);
	else if (what < 880)
		step_pin(m);
	else if (what < 940)
		step_abort(m);
	else if (what < 955)
		step_reopen(m);
	else if (what < 985)
		step_crasher();
	else if (what < 988)
		step_kill_daemon();
	else if (what < 992 && *fault)
		step_corrupt();
	else if (what > 995)
		check_books();
}

static void run(uint64_t steps_max, uint64_t seconds)
{
	static const char *const faults[] = { "",
					      "",
					      "read:short:every=3,write:short:every=4",
					      "read:eio:every=40",
					      "read:flip:every=30",
					      "write:eio:every=40,read:stall_ms=50:every=50",
					      "write:enospc:every=25" };
	uint64_t until = private_daemon_now_ns() + seconds * 1000000000ull;

	rng_init(&rng, seed);
	fault = faults[rng_below(&rng, sizeof(faults) / sizeof(faults[0]))];
	quota_bytes = rng_one_in(&rng, 3) ? QUOTA_BYTES : 0;
	daemon_.files = 1 + (unsigned)(seed & 1);
	printf("seed %llu, faults \"%s\", quota %llu\n", (unsigned long long)seed, fault,
	       (unsigned long long)quota_bytes);
	(void)fflush(stdout);
	memset(&reference, 0, sizeof(reference));
	memset(engines, 0, sizeof(engines));
	start_daemon(0);
	for (unsigned i = 0; i < ENGINES; i++)
		CHECK(open_engine(&engines[i].e) == 0, "cannot connect\n");
	for (step = 0; step < steps_max && (!seconds || private_daemon_now_ns() < until); step++)
		one_step();
	check_nothing_is_left();
	for (unsigned i = 0; i < ENGINES; i++)
		engine_close(&engines[i].e);
	CHECK(private_daemon_stop(&daemon_) == 0, "skvcd did not stop cleanly\n");
	printf("seed %llu: %llu steps, %lu blocks stored, %lu loaded exactly, %lu not, %lu clients and "
	       "%lu daemons killed\n",
	       (unsigned long long)seed, (unsigned long long)step, blocks_stored, blocks_loaded,
	       blocks_missed, crashes, restarts);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seed", required_argument, NULL, 'r' },
						 { "steps", required_argument, NULL, 'n' },
						 { "seconds", required_argument, NULL, 's' },
						 { NULL, 0, NULL, 0 } };
	uint64_t steps = STEPS, seconds = 0, until;
	const char *env = getenv("SEED");
	unsigned rounds = ROUNDS;
	int opt;

	seed = env && *env ? strtoull(env, NULL, 0) : 1;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'r')
			seed = strtoull(optarg, NULL, 0);
		else if (opt == 'n')
			steps = strtoull(optarg, NULL, 0);
		else if (opt == 's')
			seconds = strtoull(optarg, NULL, 0);
		else
			return 2;
		if (opt != 's')
			rounds = 1;
	}
	/* Each round is a daemon, a seed and a set of faults of its own. */
	until = private_daemon_now_ns() + seconds * 1000000000ull;
	for (unsigned i = 0; seconds ? private_daemon_now_ns() < until : i < rounds; i++) {
		run(seconds ? 20000 : steps, seconds);
		seed++;
	}
	return blocks_loaded ? 0 : 1;
}
