/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_roles.c - see gpu_roles.h.
 */
#include "tests/lib/gpu_roles.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/lib/daemon_stats.h"
#include "tests/lib/engine.h"
#include "tests/lib/gpu_engine.h"
#include "tests/lib/private_daemon.h"
#include "tests/lib/rng.h"

#define SEED 20u
#define BLOCKS 32u
#define OTHER 0x5cu

static struct gpu_engine e;
static const char *socket_path;
static int news_fd;
static volatile sig_atomic_t stop;

static void announce(uint64_t value)
{
	gpu_need(write(news_fd, &value, sizeof(value)) == (ssize_t)sizeof(value));
}

/* A store of a chain nobody has, and back. */
static void whole(uint64_t chain, uint32_t count)
{
	int r = gpu_engine_store(&e, chain, count);

	if (r < 0)
		gpu_side_die(__FILE__, __LINE__, strerror(-r));
	gpu_need(gpu_engine_fetch(&e, chain, count) == (int)count);
}

/* Until the daemon has fitted a profile, the CPU codes what was seen: 512 tokens, and some time. */
static void await_profile(uint64_t chain)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull;
	struct private_daemon d = { 0 };

	(void)snprintf(d.bus, sizeof(d.bus), "%.*s/bus",
		       (int)(strrchr(socket_path, '/') - socket_path), socket_path);
	(void)gpu_engine_store(&e, chain, BLOCKS);
	while (daemon_stats_now(&d, "profiles_fitted") == 0) {
		gpu_need(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
	}
}

static void warm_up(uint64_t chain)
{
	for (unsigned i = 0; i < 4; i++)
		whole(chain + i, BLOCKS);
	await_profile(chain + 4);
}

static int roundtrip(void)
{
	uint64_t chain = 1000 * (uint64_t)getpid();

	warm_up(chain);
	for (unsigned i = 10; i < 18; i++)
		whole(chain + i, i % 3 ? BLOCKS : 1 + i);
	/* Another session's, whatever its layout was. */
	gpu_need(gpu_engine_store(&e, 1, BLOCKS) <= 0);
	gpu_need(gpu_engine_fetch(&e, 1, BLOCKS) == (int)BLOCKS);
	return 0;
}

/* ---- events ---- */

static void event_before_store(uint64_t chain, struct gpu_event *ev, uint32_t ready)
{
	struct skvc_completion c;
	uint64_t job;

	/* All but the first allocation is there; that follows, and then the event. */
	gpu_engine_image(&e, chain, BLOCKS);
	gpu_engine_write(&e);
	gpu_side_fill(&e.side, &e.memory[0], OTHER);
	gpu_side_write_later(&e.side, &e.memory[0], e.image[0], 80, ev);
	gpu_need(gpu_engine_submit_store(&e, chain, BLOCKS, ready, &job) == 0);
	private_daemon_sleep_ms(20);
	gpu_need(skvc_result(e.session, job, &c) == -EINPROGRESS);
	gpu_need(gpu_engine_finish(&e, job, &c) == 0 && c.res == 0);
	gpu_side_later_end(&e.side);
	gpu_need(gpu_engine_fetch(&e, chain, BLOCKS) == (int)BLOCKS);
}

/* What the engine writes before its event must not lie over what was loaded. */
static void event_before_load(uint64_t chain, struct gpu_event *ev, uint32_t ready,
			      struct gpu_event *done_event, uint32_t done)
{
	uint64_t bitmap[1] = { 0 }, job;
	struct skvc_completion found, c;
	static unsigned records;

	gpu_need(gpu_engine_lookup(&e, chain, BLOCKS, &found) == 0 && found.count == BLOCKS);
	gpu_engine_poison(&e, GPU_ENGINE_POISON);
	memset(e.image[0], GPU_ENGINE_POISON, e.memory[0].bytes);
	gpu_side_write_later(&e.side, &e.memory[0], e.image[0], 80, ev);
	gpu_need(gpu_engine_submit_load(&e, found.lease, BLOCKS, ready, done, bitmap, &job) == 0);
	private_daemon_sleep_ms(20);
	gpu_need(skvc_result(e.session, job, &c) == -EINPROGRESS);
	gpu_need(gpu_engine_finish(&e, job, &c) == 0 && c.res == 0);
	gpu_side_event_was_recorded(&e.side, done_event, ++records);
	gpu_side_later_end(&e.side);
	gpu_need(bitmap[0] == (1ull << BLOCKS) - 1u);
	gpu_engine_check(&e, chain, BLOCKS, bitmap, GPU_ENGINE_POISON);
	gpu_engine_release(&e, found.lease);
}

static int events(void)
{
	uint64_t chain = 1000 * (uint64_t)getpid();
	struct gpu_event ready_event, done_event;
	uint32_t ready = 0, done = 0;

	warm_up(chain);
	gpu_side_event_new(&e.side, &ready_event);
	gpu_side_event_new(&e.side, &done_event);
	gpu_need(skvc_register_gpu_event(e.session, ready_event.handle, &ready) == 0);
	gpu_need(skvc_register_gpu_event(e.session, done_event.handle, &done) == 0);
	for (unsigned i = 10; i < 14; i++) {
		event_before_store(chain + i, &ready_event, ready);
		event_before_load(chain + i, &ready_event, ready, &done_event, done);
	}
	gpu_need(skvc_unregister(e.session, ready) == 0);
	gpu_need(skvc_unregister(e.session, done) == 0);
	gpu_need(skvc_unregister(e.session, done) == -ESTALE);
	gpu_side_event_free(&e.side, &ready_event);
	gpu_side_event_free(&e.side, &done_event);
	return 0;
}

/* ---- what is refused ---- */

/* want: 0 for any error.  Each time the session says why, and goes on. */
static void refused(const char *what, int r, int want)
{
	const char *why = skvc_last_error(e.session);

	printf("%s: %s: %s\n", what, strerror(r < 0 ? -r : 0), why);
	if (r >= 0 || (want && r != want))
		gpu_side_die(__FILE__, __LINE__, what);
	gpu_need(why[0]);
	gpu_need(gpu_engine_fetch(&e, 1, 8) == 8);
}

static int register_with(uint32_t type, int fd, uint64_t bytes, const uint8_t *handle)
{
	struct skvc_gpu_export exports[GPU_ENGINE_MEMORIES_MAX];
	uint32_t region = 0;
	int r;

	gpu_engine_exports(&e, exports);
	exports[0].type = type;
	exports[0].fd = fd;
	exports[0].allocation_bytes = bytes;
	memcpy(exports[0].ipc_handle, handle, sizeof(exports[0].ipc_handle));
	r = gpu_engine_register(&e, exports, BLOCKS, &region);
	gpu_need(r < 0 || skvc_unregister(e.session, region) == 0);
	return r;
}

static void bad_memory(enum gpu_side_kind kind)
{
	struct gpu_memory fresh;
	struct skvc_gpu_export x;
	uint64_t bytes = e.memory[0].bytes;

	/* A page more than there is: of what is open already, and of what is not. */
	x = gpu_side_export(&e.side, &e.memory[0]);
	refused("a page too much", register_with(x.type, x.fd, bytes + 4096u, x.ipc_handle),
		-ERANGE);
	gpu_side_memory_new(&e.side, kind, bytes, &fresh);
	x = gpu_side_export(&e.side, &fresh);
	refused("a page too much of new memory",
		register_with(x.type, x.fd, bytes + 4096u, x.ipc_handle), -ERANGE);
	gpu_need(register_with(x.type, x.fd, bytes, x.ipc_handle) == 0);
	gpu_side_memory_free(&e.side, &fresh);
	/* A handle that was good; a descriptor has none that outlives its memory. */
	if (kind == GPU_SIDE_IPC)
		refused("memory that was freed", register_with(x.type, x.fd, bytes, x.ipc_handle),
			0);
}

static void bad_layout(void)
{
	struct skvc_gpu_export exports[GPU_ENGINE_MEMORIES_MAX];
	uint32_t region;

	gpu_engine_exports(&e, exports);
	refused("a layout larger than its allocation",
		gpu_engine_register(&e, exports, BLOCKS * 1000u, &region), -ERANGE);
	exports[0].device_uuid[3] ^= 0x40;
	refused("another GPU's memory", gpu_engine_register(&e, exports, BLOCKS, &region), -ENODEV);
}

static int bad(enum gpu_side_kind kind)
{
	int memfd = memfd_create("not GPU memory", MFD_CLOEXEC), pipes[2];
	uint64_t bytes = e.memory[0].bytes;
	uint8_t nonsense[64];
	uint32_t event;
	struct rng r;

	rng_init(&r, 9);
	rng_fill(&r, nonsense, sizeof(nonsense));
	gpu_need(gpu_engine_store(&e, 1, 8) <= 0);
	gpu_need(memfd >= 0 && ftruncate(memfd, (off_t)bytes) == 0 && pipe(pipes) == 0);
	refused("a nonsense handle", register_with(SKVC_GPU_IPC_HANDLE, -1, bytes, nonsense),
		-EINVAL);
	memset(nonsense, 0, sizeof(nonsense));
	refused("a handle of zeros", register_with(SKVC_GPU_IPC_HANDLE, -1, bytes, nonsense),
		-EINVAL);
	refused("a memfd", register_with(SKVC_GPU_POSIX_FD, memfd, bytes, nonsense), -EINVAL);
	refused("a pipe", register_with(SKVC_GPU_POSIX_FD, pipes[0], bytes, nonsense), -EINVAL);
	refused("no kind of memory", register_with(7, -1, bytes, nonsense), -EINVAL);
	bad_memory(kind);
	bad_layout();
	rng_fill(&r, nonsense, sizeof(nonsense));
	refused("a nonsense event", skvc_register_gpu_event(e.session, nonsense, &event), -EINVAL);
	whole(1000 * (uint64_t)getpid(), BLOCKS);
	return 0;
}

/* ---- whose pages they are ---- */

/* Wait or abort, write, and see that nobody writes after us. */
static void end_and_write(uint64_t job, bool abort_it, unsigned delay_us)
{
	struct skvc_completion c;

	(void)usleep(delay_us);
	if (abort_it)
		gpu_need(skvc_abort(e.session, job) == 0);
	else
		gpu_need(skvc_wait(e.session, &job, 1, SKVC_WAIT_FOREVER) == 0);
	gpu_engine_poison(&e, OTHER);
	private_daemon_sleep_ms(50);
	gpu_engine_check(&e, 0, 0, NULL, OTHER);
	gpu_need(skvc_result(e.session, job, &c) == 0);
	gpu_need(c.res == 0 || (abort_it && c.res == -ECANCELED));
}

static int overwrite(void)
{
	uint64_t chain = 1000 * (uint64_t)getpid(), job;
	struct rng r;

	rng_init(&r, 3);
	warm_up(chain);
	for (unsigned i = 0; i < 16; i++) {
		struct skvc_completion found;
		uint64_t bitmap[1];

		gpu_need(gpu_engine_lookup(&e, chain + i % 4, BLOCKS, &found) == 0);
		gpu_engine_poison(&e, GPU_ENGINE_POISON);
		gpu_need(gpu_engine_submit_load(&e, found.lease, found.count, 0, 0, bitmap, &job) ==
			 0);
		end_and_write(job, i % 4 != 0, rng_below(&r, i < 8 ? 300 : 3000));
		gpu_engine_release(&e, found.lease);
		/* A store that was given up has what it has from before we wrote. */
		gpu_engine_image(&e, chain + 10 + i, BLOCKS);
		gpu_engine_write(&e);
		gpu_need(gpu_engine_submit_store(&e, chain + 10 + i, BLOCKS, 0, &job) == 0);
		end_and_write(job, i % 4 != 0, rng_below(&r, i < 8 ? 300 : 3000));
		gpu_need(gpu_engine_fetch(&e, chain + 10 + i, BLOCKS) >= 0);
	}
	return 0;
}

/* ---- tiers ---- */

static int tiers(void)
{
	uint32_t chains = 40, came = 0;

	for (uint32_t c = 0; c < chains; c++) {
		int r = gpu_engine_store(&e, 5000 + c, BLOCKS);

		gpu_need(r == 0 || r == -EAGAIN);
		/* The first was coded by the CPU, for want of a profile, and is in host memory;
		 * others are hot on the GPU. */
		if (c % 8 == 7 || c == 0)
			gpu_need(gpu_engine_fetch(&e, 5000 + c, BLOCKS) >= 0);
	}
	for (uint32_t c = 0; c < chains; c++) {
		int r = gpu_engine_fetch(&e, 5000 + c, BLOCKS);

		gpu_need(r >= 0);
		came += (uint32_t)r;
	}
	printf("%u of %u blocks came back\n", came, chains * BLOCKS);
	gpu_need(came >= chains * BLOCKS / 4u * 3u);
	return 0;
}

/* ---- ends ---- */

static int freeing(void)
{
	uint64_t chain = 1000 * (uint64_t)getpid(), job;
	struct skvc_completion c;

	warm_up(chain);
	gpu_engine_image(&e, chain + 9, BLOCKS);
	gpu_engine_write(&e);
	gpu_need(gpu_engine_submit_store(&e, chain + 9, BLOCKS, 0, &job) == 0);
	for (uint32_t i = 0; i < e.memories; i++)
		gpu_side_memory_free(&e.side, &e.memory[i]);
	gpu_need(gpu_engine_finish(&e, job, &c) == 0);
	printf("the store whose pages were freed: %s\n", strerror(-c.res));
	return 0;
}

__attribute__((noreturn)) static void busy(bool loads)
{
	uint64_t chain = 1000 * (uint64_t)getpid();

	for (uint64_t i = 0;; i++) {
		if (i == 4)
			announce(0);
		/* What was refused or evicted is stored again: the pool is everybody's. */
		if (!loads || i < 4 || gpu_engine_fetch(&e, chain + i % 4, BLOCKS) <= 0)
			(void)gpu_engine_store(&e, chain + (loads ? i % 4 : i), BLOCKS);
	}
}

static void on_term(int signal)
{
	(void)signal;
	stop = 1;
}

static int survivor(void)
{
	uint64_t rounds = 0, came = 0;

	(void)signal(SIGTERM, on_term);
	warm_up(2000);
	announce(0);
	for (; !stop; rounds++) {
		uint64_t chain = 3000 + rounds % 8;
		int r = gpu_engine_store(&e, chain, 8);

		/* The others fill the pool: then it is refused, or gone when it is asked for. */
		gpu_need(r == 0 || r == -EAGAIN || r == -EEXIST);
		r = gpu_engine_fetch(&e, chain, 8);
		if (r < 0)
			gpu_side_die(__FILE__, __LINE__, strerror(-r));
		came += (uint64_t)r;
	}
	announce(came);
	printf("the survivor had %llu of %llu blocks back\n", (unsigned long long)came,
	       (unsigned long long)rounds * 8);
	return came >= rounds * 4 && rounds > 0 ? 0 : 1;
}

/* ---- faults ---- */

/* What does not depend on the GPU goes on whatever becomes of that. */
static void host_works(void)
{
	struct engine_options o = { .seed = SEED, .model = "host", .name = "host engine" };
	struct skvc_completion c;
	struct engine host;

	gpu_need(engine_open(&host, socket_path, &o) == 0);
	gpu_need(engine_store(&host, 7, 0, 16, &c) == 0);
	gpu_need(engine_fetch(&host, 7, 16) == 16);
	engine_close(&host);
}

static int faulty(void)
{
	uint64_t chain = 1000 * (uint64_t)getpid();
	uint32_t came = 0, stored = 0;

	await_profile(chain + 100);
	for (unsigned i = 0; i < 24; i++) {
		int r = gpu_engine_store(&e, chain + i, BLOCKS);

		stored += r == 0;
		r = gpu_engine_fetch(&e, chain + i, BLOCKS);
		gpu_need(r != -ETIME && r != -EPIPE);
		came += r > 0 ? (uint32_t)r : 0;
	}
	printf("%u of 24 stores were whole, %u blocks came back\n", stored, came);
	gpu_need(came > 0);
	host_works();
	return 0;
}

static int dead(void)
{
	struct skvc_gpu_export exports[GPU_ENGINE_MEMORIES_MAX];
	uint64_t chain = 1000 * (uint64_t)getpid();
	uint32_t region;
	int r = 0;

	gpu_engine_exports(&e, exports);
	await_profile(chain + 300);
	for (unsigned i = 0; i < 200 && r >= 0; i++) {
		(void)gpu_engine_store(&e, chain + i, BLOCKS);
		(void)gpu_engine_fetch(&e, chain + i, BLOCKS);
		r = gpu_engine_register(&e, exports, BLOCKS, &region);
		gpu_need(r < 0 || skvc_unregister(e.session, region) == 0);
	}
	printf("after its death: %s: %s\n", strerror(-r), skvc_last_error(e.session));
	gpu_need(r == -EIO);
	/* Nothing hangs, neither with what was registered before. */
	gpu_need(gpu_engine_store(&e, chain + 500, BLOCKS) < 0);
	gpu_need(gpu_engine_fetch(&e, chain + 500, BLOCKS) <= 0);
	gpu_need(skvc_unregister(e.session, e.region) == 0);
	host_works();
	return 0;
}

/* The GPU ends nothing: sooner or later the daemon is gone, and says so to whoever waits. */
static int hung(void)
{
	int r = 0;

	for (uint64_t i = 0; i < 1000 && r != -EPIPE; i++) {
		r = gpu_engine_store(&e, 5000 + i, BLOCKS);
		private_daemon_sleep_ms(1);
	}
	printf("the daemon: %s\n", strerror(-r));
	return r == -EPIPE ? 0 : 1;
}

/* ---- all of them ---- */

static int probe(void)
{
	struct gpu_side side;
	int r = gpu_side_open(&side);

	if (r)
		return r;
	announce(gpu_side_free_bytes(&side));
	gpu_side_close(&side);
	return 0;
}

static int play(const char *role, enum gpu_side_kind kind, const char *how)
{
	if (!strcmp(role, "roundtrip"))
		return roundtrip();
	if (!strcmp(role, "events"))
		return events();
	if (!strcmp(role, "bad"))
		return bad(kind);
	if (!strcmp(role, "overwrite"))
		return overwrite();
	if (!strcmp(role, "hung"))
		return hung();
	if (!strcmp(role, "tiers"))
		return tiers();
	if (!strcmp(role, "freeing"))
		return freeing();
	if (!strcmp(role, "busy"))
		busy(!strcmp(how, "load"));
	if (!strcmp(role, "survivor"))
		return survivor();
	if (!strcmp(role, "faulty"))
		return faulty();
	if (!strcmp(role, "dead"))
		return dead();
	return 2;
}

int gpu_roles_run(char **arg)
{
	enum gpu_side_kind kind = strcmp(arg[3], "vmm") ? GPU_SIDE_IPC : GPU_SIDE_VMM;
	enum gpu_engine_layout layout = strcmp(arg[4], "cross") ? GPU_ENGINE_PER_LAYER
								: GPU_ENGINE_CROSS_LAYER;
	int r;

	socket_path = arg[1];
	news_fd = (int)strtol(arg[2], NULL, 10);
	if (!strcmp(arg[0], "probe"))
		return probe();
	r = gpu_engine_open(&e, socket_path, SEED, kind, layout, BLOCKS);
	if (r == 0)
		r = play(arg[0], kind, arg[4]);
	if (r == 0)
		gpu_engine_close(&e);
	return r;
}
