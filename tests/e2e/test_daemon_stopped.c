/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_daemon_stopped.c - a daemon that is stopped (SIGSTOP) and not dead: each call that waits inside comes back
 * within timeout_ns, with what skvc.h says of it; and when the daemon goes on, so does the session.
 *
 * One session and one thread for each call, so that all of them wait at the same time.
 */
#include "tests/lib/e2e.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a busy machine takes to answer at all, while the daemon runs. */
#ifdef SKVCD_SAN
#define TIMEOUT_MS 1500u
#else
#define TIMEOUT_MS 500u
#endif
#define LATE_MS (5000u * E2E_SLOW) /* a busy machine; not the minute of the default */
#define MS 1000000ull

static struct private_daemon daemon_;

static int start(void **state)
{
	(void)state;
	return private_daemon_start(&daemon_, 0, NULL);
}

static int stop(void **state)
{
	(void)state;
	if (daemon_.pid)
		(void)kill(daemon_.pid, SIGCONT);
	return private_daemon_stop(&daemon_);
}

/* kill() only sends the signal: all threads have stopped when waitpid() says so. */
static void freeze(void)
{
	assert_int_equal(kill(daemon_.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(daemon_.pid, NULL, WUNTRACED), daemon_.pid);
}

static void thaw(void)
{
	assert_int_equal(kill(daemon_.pid, SIGCONT), 0);
}

/* It has done what piled up: who is more patient than the callers has been served. */
static void caught_up(void)
{
	const struct engine_options o = { .seed = 99, .model = "patient", .blocks = 1 };
	struct skvc_completion done;
	struct engine e;

	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_ok(engine_store(&e, 1, 0, 1, &done));
	engine_close(&e);
}

static unsigned open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	(void)closedir(dir);
	return count;
}

/* ---- the calls ---- */

struct caller {
	const struct call *call;
	pthread_t thread;
	struct engine e;
	uint64_t job;	       /* submitted when the daemon was stopped; 0: none */
	uint8_t *block;	       /* one */
	int result;	       /* of the call */
	int again;	       /* of the same call a second time */
	int reconnect, nop;    /* while it was stopped */
	unsigned ms, again_ms; /* that it took */
	unsigned reconnect_ms;
	char error[256];
};

#define BUSY 1u /* a store is under way */
#define USED 2u /* put and get were used before */

struct call {
	const char *name;
	int (*run)(struct caller *c);
	int stopped, later; /* what it returns */
	unsigned before;    /* BUSY, USED */
};

static struct skvc_key simple_key(const struct caller *c, uint32_t n)
{
	return engine_key(&c->e, 900 + (uint64_t)n, 0);
}

static int run_put(struct caller *c)
{
	const struct skvc_key key = simple_key(c, 1);

	return skvc_put(c->e.session, c->e.ns, &key, c->block, c->e.data.block_bytes);
}

static int run_get(struct caller *c)
{
	const struct skvc_key key = simple_key(c, 0);

	return skvc_get(c->e.session, c->e.ns, &key, c->block, c->e.data.block_bytes);
}

static int run_abort(struct caller *c)
{
	return skvc_abort(c->e.session, c->job);
}

static int run_unregister(struct caller *c)
{
	return skvc_unregister(c->e.session, c->e.region);
}

static int run_namespace(struct caller *c)
{
	const struct skvc_geometry geometry = kv_data_geometry(&c->e.data, "another");
	uint32_t ns;

	return skvc_namespace_open(c->e.session, &geometry, &ns);
}

static int run_prefill(struct caller *c)
{
	return skvc_namespace_prefill(c->e.session, c->e.ns, 1000);
}

static int run_arena(struct caller *c)
{
	struct skvc_arena *arena;

	return skvc_arena_new(c->e.session, 4096, &arena);
}

static int run_host(struct caller *c)
{
	uint32_t region;

	return skvc_register_host(c->e.session, c->e.ns, c->e.arena, 0, 1, NULL, &region);
}

static int run_gpu(struct caller *c)
{
	struct skvc_gpu_export memory = { .type = SKVC_GPU_POSIX_FD, .allocation_bytes = 1 << 20 };
	uint32_t region;
	int r;

	memory.fd = memfd_create("gpu", MFD_CLOEXEC);
	r = skvc_register_gpu(c->e.session, c->e.ns, &memory, 1, 1, NULL, &region);
	(void)close(memory.fd);
	return r;
}

static int run_event(struct caller *c)
{
	const uint8_t ipc_event[64] = { 1 };
	uint32_t event;

	return skvc_register_gpu_event(c->e.session, ipc_event, &event);
}

/* Has no result: the session's tells. */
static int run_arena_free(struct caller *c)
{
	struct skvc_completion done;
	int r = 0;

	c->e.arena = skvc_arena_free(c->e.arena);
	c->e.pages = NULL;
	if (c->job && !skvc_result(c->e.session, c->job, &done) && done.res == -EPIPE &&
	    !strcmp(skvc_reason_name(done.reason), "no-answer"))
		r = -ETIMEDOUT;
	c->job = 0;
	return r;
}

static const struct call calls[] = {
	{ "put", run_put, -ETIME, -EEXIST, USED },
	{ "get", run_get, -ETIME, 0, USED },
	{ "abort", run_abort, -ETIME, 0, BUSY },
	{ "unregister, busy", run_unregister, -ETIME, 0, BUSY },
	{ "unregister", run_unregister, -ETIMEDOUT, 0, 0 },
	{ "put, the first", run_put, -ETIMEDOUT, 0, 0 },
	{ "namespace", run_namespace, -ETIMEDOUT, 0, 0 },
	{ "prefill", run_prefill, -ETIMEDOUT, 0, 0 },
	{ "arena", run_arena, -ETIMEDOUT, 0, 0 },
	{ "register host", run_host, -ETIMEDOUT, 0, 0 },
	{ "register GPU", run_gpu, -ETIMEDOUT, -EOPNOTSUPP, 0 },
	{ "register event", run_event, -ETIMEDOUT, -EOPNOTSUPP, 0 },
	{ "free arena", run_arena_free, -ETIMEDOUT, 0, BUSY },
};

#define CALLS (sizeof(calls) / sizeof(calls[0]))

static unsigned ms_since(uint64_t start_ns)
{
	return (unsigned)((private_daemon_now_ns() - start_ns) / MS);
}

static void prepare(struct caller *c, const struct call *call, uint64_t seed)
{
	const struct engine_options o = {
		.seed = seed, .model = "stopped", .blocks = 8, .timeout_ns = TIMEOUT_MS * MS
	};

	memset(c, 0, sizeof(*c));
	c->call = call;
	assert_ok(engine_open(&c->e, daemon_.socket, &o));
	c->block = malloc(c->e.data.block_bytes);
	assert_non_null(c->block);
	memset(c->block, (int)seed, c->e.data.block_bytes);
	if (call->before & USED) {
		const struct skvc_key first = simple_key(c, 0);

		assert_ok(skvc_put(c->e.session, c->e.ns, &first, c->block, c->e.data.block_bytes));
	}
}

static void *while_it_is_stopped(void *user)
{
	struct caller *c = user;
	uint64_t start_ns = private_daemon_now_ns(), job;

	c->result = c->call->run(c);
	c->ms = ms_since(start_ns);
	(void)snprintf(c->error, sizeof(c->error), "%s", skvc_last_error(c->e.session));
	start_ns = private_daemon_now_ns();
	if (c->call->stopped == -ETIME || c->call->run == run_unregister)
		c->again = c->call->run(c);
	c->again_ms = ms_since(start_ns);
	start_ns = private_daemon_now_ns();
	if (c->call->stopped == -ETIMEDOUT)
		c->reconnect = skvc_reconnect(c->e.session);
	c->reconnect_ms = ms_since(start_ns);
	c->nop = skvc_nop(c->e.session, &job);
	if (!c->nop && !c->job)
		c->job = job;
	return NULL;
}

static void in_time(const struct caller *c, const char *what, unsigned ms)
{
	if (ms + 1 < TIMEOUT_MS || ms > TIMEOUT_MS + LATE_MS)
		fail_msg("%s%s took %u ms, not %u", c->call->name, what, ms, TIMEOUT_MS);
}

static void check_stopped(const struct caller *c)
{
	print_message("%-18s %4u ms: %s\n", c->call->name, c->ms, c->error);
	assert_res(c->result, c->call->stopped);
	in_time(c, "", c->ms);
	assert_true(c->error[0]);
	if (c->call->stopped == -ETIME || c->call->run == run_unregister) {
		assert_res(c->again, c->call->stopped);
		in_time(c, " again", c->again_ms);
	}
	if (c->call->stopped == -ETIME) {
		assert_ok(c->nop); /* the session goes on */
	} else {
		assert_res(c->nop, -EPIPE);
		assert_res(c->reconnect, -ETIMEDOUT);
		in_time(c, ": reconnect", c->reconnect_ms);
		if (c->call->run != run_arena_free)
			assert_non_null(strstr(c->error, "skvc_reconnect"));
	}
}

/* A busy machine may need longer than these callers wait: they call again, as they are told to. */
static int run_again(struct caller *c)
{
	uint64_t start_ns = private_daemon_now_ns();
	int late = 0, r;

	do {
		r = c->call->run(c);
		late |= r == -ETIME;
		if (r == -ETIMEDOUT)
			assert_ok(skvc_reconnect(c->e.session));
	} while ((r == -ETIME || r == -ETIMEDOUT) && ms_since(start_ns) < 30000 * E2E_SLOW);
	return late && r == -EEXIST ? c->call->later : r; /* the put that was late */
}

/* Nothing is lost, nothing is left over. */
static void check_later(struct caller *c)
{
	struct skvc_completion done;
	struct skvc_session *s = c->e.session;

	if (c->call->stopped == -ETIMEDOUT) {
		/* What was submitted has ended, with the connection. */
		assert_int_equal(skvc_pending(s), 0);
		assert_ok(skvc_reconnect(s));
	}
	if (c->call->run == run_get)
		memset(c->block, 0, c->e.data.block_bytes);
	if (c->call->run != run_arena_free)
		assert_res(run_again(c), c->call->later);
	if (c->call->run == run_get)
		for (size_t i = 0; i < c->e.data.block_bytes; i++)
			assert_int_equal(c->block[i], (uint8_t)(1 + (c->call - calls)));
	if (c->job) {
		assert_ok(skvc_wait(s, &c->job, 1, 20000 * MS));
		while (skvc_pending(s))
			assert_true(skvc_poll(s, &done, 1) >= 0);
	}
	if (c->call->run == run_unregister)
		assert_ok(skvc_register_host(s, c->e.ns, c->e.arena, 0, c->e.blocks, NULL,
					     &c->e.region));
	if (c->call->run == run_arena_free)
		return;
	assert_ok(engine_store(&c->e, 7, 0, 4, &done));
	assert_int_equal(engine_fetch(&c->e, 7, 4), 4);
	assert_int_equal(skvc_pending(s), 0);
}

static void test_each_call(void **state)
{
	static struct caller callers[CALLS];
	unsigned fds = open_fds();

	(void)state;
	for (size_t i = 0; i < CALLS; i++)
		prepare(&callers[i], &calls[i], 1 + i);
	freeze();
	for (size_t i = 0; i < CALLS; i++)
		if (calls[i].before & BUSY)
			assert_ok(engine_submit_store(&callers[i].e, 50, 0, 8, &callers[i].job));
	for (size_t i = 0; i < CALLS; i++)
		assert_int_equal(
			pthread_create(&callers[i].thread, NULL, while_it_is_stopped, &callers[i]),
			0);
	for (size_t i = 0; i < CALLS; i++)
		assert_int_equal(pthread_join(callers[i].thread, NULL), 0);
	for (size_t i = 0; i < CALLS; i++)
		check_stopped(&callers[i]);
	thaw();
	caught_up();
	for (size_t i = 0; i < CALLS; i++)
		check_later(&callers[i]);
	for (size_t i = 0; i < CALLS; i++) {
		engine_close(&callers[i].e);
		free(callers[i].block);
	}
	assert_int_equal(open_fds(), fds);
}

/* ---- what the daemon may still write to ---- */

#define GPU_BYTES (1u << 20)
#define GPU_BLOCKS 4u
#define DELAY_MS (3u * TIMEOUT_MS)

static void gpu_memory(struct engine *e, uint8_t **ret_pages, uint32_t *ret_region)
{
	struct skvc_gpu_export memory = { .type = SKVC_GPU_POSIX_FD,
					  .allocation_bytes = GPU_BYTES };

	memcpy(memory.device_uuid, "SIMULATED-GPU-00", 16);
	memory.fd = memfd_create("gpu", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(memory.fd, GPU_BYTES), 0);
	assert_int_equal(fcntl(memory.fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	*ret_pages = mmap(NULL, GPU_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
	assert_ptr_not_equal(*ret_pages, MAP_FAILED);
	assert_ok(skvc_register_gpu(e->session, e->ns, &memory, 1, GPU_BLOCKS, NULL, ret_region));
	(void)close(memory.fd);
}

/* A load is under way in the daemon when that is stopped, and goes on in it when nobody waits any more. */
static void test_pages_of_a_load(void **state)
{
	char fault[64];
	const char *const slow[] = { "gpu.device=sim", fault, NULL };
	const struct engine_options o = { .seed = 5, .timeout_ns = TIMEOUT_MS * MS };
	const uint32_t blocks[GPU_BLOCKS] = { 0, 1, 2, 3 };
	struct skvc_load load = { .count = GPU_BLOCKS, .blocks = blocks };
	struct skvc_completion done;
	uint64_t job, start_ns;
	uint8_t *pages;
	uint32_t region;
	struct engine e;
	int r;

	(void)state;
	(void)snprintf(fault, sizeof(fault), "fault.gpu=copy_in:delay_ms=%u", DELAY_MS);
	assert_ok(private_daemon_start(&daemon_, 0, slow));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_ok(engine_store(&e, 1, 0, GPU_BLOCKS, &done));
	assert_ok(engine_lookup(&e, 1, GPU_BLOCKS, &done));
	gpu_memory(&e, &pages, &region);
	load.lease = done.lease;
	load.region = region;
	start_ns = private_daemon_now_ns();
	assert_ok(skvc_load(e.session, &load, &job));
	private_daemon_sleep_ms(TIMEOUT_MS / 2); /* for the daemon to begin */
	freeze();
	assert_res(skvc_namespace_prefill(e.session, e.ns, 1), -ETIMEDOUT);
	assert_ok(skvc_result(e.session, job, &done));
	assert_res(done.res, -EPIPE);
	assert_string_equal(skvc_reason_name(done.reason), "no-answer");
	assert_res(skvc_unregister(e.session, region), -ETIMEDOUT);
	thaw();
	do
		r = skvc_unregister(e.session, region);
	while (r == -ETIMEDOUT);
	assert_ok(r);
	print_message("let go of after %u ms\n", ms_since(start_ns));
	assert_true(ms_since(start_ns) >= DELAY_MS);
	memset(pages, 0x42, GPU_BYTES);
	assert_ok(skvc_reconnect(e.session));
	private_daemon_sleep_ms(50);
	for (uint32_t i = 0; i < GPU_BYTES; i++)
		assert_int_equal(pages[i], 0x42);
	assert_int_equal(engine_fetch(&e, 1, GPU_BLOCKS), GPU_BLOCKS);
	(void)munmap(pages, GPU_BYTES);
	engine_close(&e);
}

/* Given up, and then it dies: nothing is left that anybody could write to. */
static void test_it_dies_after_all(void **state)
{
	const struct engine_options o = { .seed = 6, .timeout_ns = TIMEOUT_MS * MS };
	struct skvc_completion done;
	struct engine e;

	(void)state;
	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_ok(engine_store(&e, 1, 0, 4, &done));
	freeze();
	assert_res(skvc_unregister(e.session, e.region), -ETIMEDOUT);
	private_daemon_kill(&daemon_, SIGKILL);
	assert_ok(skvc_unregister(e.session, e.region));
	assert_res(skvc_unregister(e.session, e.region), -ESTALE);
	assert_res(skvc_reconnect(e.session), -ECONNREFUSED);
	engine_close(&e);
}

/* ---- no bound, and the bound of the end ---- */

static void *thaw_later(void *user)
{
	(void)user;
	private_daemon_sleep_ms(TIMEOUT_MS / 2);
	thaw();
	return NULL;
}

static void test_without_a_bound(void **state)
{
	const struct engine_options o = { .seed = 7, .timeout_ns = SKVC_WAIT_FOREVER };
	const uint64_t start_ns = private_daemon_now_ns();
	struct skvc_completion done;
	pthread_t thread;
	struct engine e;
	uint64_t job;

	(void)state;
	assert_ok(engine_open(&e, daemon_.socket, &o));
	freeze();
	assert_ok(engine_submit_store(&e, 1, 0, 4, &job));
	assert_int_equal(pthread_create(&thread, NULL, thaw_later, NULL), 0);
	assert_ok(skvc_unregister(e.session, e.region)); /* jobs, and then the request */
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_true(ms_since(start_ns) >= TIMEOUT_MS / 2);
	assert_ok(engine_finish(&e, job, &done));
	assert_ok(done.res);
	engine_close(&e);
}

static void test_closing(void **state)
{
	const struct engine_options o = { .seed = 8, .timeout_ns = TIMEOUT_MS * MS };
	uint64_t start_ns, job;
	struct engine e;

	(void)state;
	assert_ok(engine_open(&e, daemon_.socket, &o));
	freeze();
	assert_ok(engine_submit_store(&e, 1, 0, 4, &job));
	start_ns = private_daemon_now_ns();
	engine_close(&e);
	assert_in_range(ms_since(start_ns), TIMEOUT_MS - 1, TIMEOUT_MS + LATE_MS);
	thaw();
	assert_ok(engine_open(&e, daemon_.socket, &o)); /* and the daemon is as it was */
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_each_call, start, stop),
		cmocka_unit_test_teardown(test_pages_of_a_load, stop),
		cmocka_unit_test_setup_teardown(test_it_dies_after_all, start, stop),
		cmocka_unit_test_setup_teardown(test_without_a_bound, start, stop),
		cmocka_unit_test_setup_teardown(test_closing, start, stop),
	};

	return cmocka_run_group_tests_name("daemon-stopped", tests, NULL, NULL);
}
