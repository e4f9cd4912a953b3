/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_gpu.c - engine memory on a GPU, as far as the library has to do with it: what it refuses by
 * itself, what it sends, what it gives back when that fails half-way, and that all of it comes back after
 * a reconnect.  The fake daemon's GPU memory is the memfd whose descriptor it was sent.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/client_rig.h"

#define MEMORY_BYTES (8ull * RIG_BLOCK_BYTES)

struct gpu_rig {
	struct rig rig;
	uint8_t *pages; /* what the "GPU" sees, from here */
	struct skvc_gpu_export memory;
};

static void gpu_init(struct gpu_rig *g)
{
	memset(g, 0, sizeof(*g));
	rig_init(&g->rig, NULL);
	fake_daemon_gpu(g->rig.daemon, true);
	g->memory.type = SKVC_GPU_POSIX_FD;
	g->memory.allocation_bytes = MEMORY_BYTES;
	g->memory.fd = memfd_create("gpu", MFD_CLOEXEC);
	assert_true(g->memory.fd >= 0);
	assert_int_equal(ftruncate(g->memory.fd, MEMORY_BYTES), 0);
	g->pages = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, g->memory.fd, 0);
	assert_true(g->pages != MAP_FAILED);
}

static void gpu_deinit(struct gpu_rig *g)
{
	if (g->memory.fd >= 0)
		(void)close(g->memory.fd);
	(void)munmap(g->pages, MEMORY_BYTES);
	rig_deinit(&g->rig);
}

static int packed(struct gpu_rig *g, uint32_t blocks, uint32_t *ret_region)
{
	return skvc_register_gpu(g->rig.session, g->rig.ns, &g->memory, 1, blocks, NULL,
				 ret_region);
}

static uint32_t new_event(struct gpu_rig *g)
{
	const uint8_t handle[64] = { 'e' };
	uint32_t event = 0;

	assert_int_equal(skvc_register_gpu_event(g->rig.session, handle, &event), 0);
	assert_true(event != 0);
	return event;
}

/* ---- what is not sent ---- */

static void refuses_what_cannot_be(void **state)
{
	struct skvc_gpu_stride strides[RIG_SEGMENTS] = { 0 };
	struct skvc_gpu_export two[2];
	struct skvc_session *s;
	uint32_t region = 5;
	struct gpu_rig g;
	unsigned fds;

	(void)state;
	gpu_init(&g);
	s = g.rig.session;
	two[0] = two[1] = g.memory;
	fds = rig_open_fds();
	assert_int_equal(skvc_register_gpu(s, 9, two, 1, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, NULL, 1, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 0, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1025, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 2, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 0, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, NULL), -EINVAL);
	strides[3].memory = 2;
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 2, 1, strides, &region), -EINVAL);
	assert_non_null(strstr(skvc_last_error(s), "strides[3]"));
	strides[3] = (struct skvc_gpu_stride){ .reserved = 1 };
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 2, 1, strides, &region), -EINVAL);
	strides[3].reserved = 0;
	two[1].offset = 8;
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 2, 1, strides, &region), -EINVAL);
	assert_non_null(strstr(skvc_last_error(s), "memories[1]"));
	two[0].offset = MEMORY_BYTES;
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, &region), -EINVAL);
	two[0] = (struct skvc_gpu_export){ .type = 3, .allocation_bytes = 4096 };
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, &region), -EINVAL);
	two[0].type = SKVC_GPU_POSIX_FD;
	two[0].fd = -1;
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, &region), -EINVAL);
	two[0].fd = 1000; /* not open */
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, &region), -EBADF);
	two[0].type = SKVC_GPU_IPC_HANDLE;
	two[0].allocation_bytes = 0;
	assert_int_equal(skvc_register_gpu(s, g.rig.ns, two, 1, 1, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu_event(s, NULL, &region), -EINVAL);
	assert_int_equal(skvc_register_gpu_event(s, two[0].ipc_handle, NULL), -EINVAL);
	assert_int_equal(region, 5);
	assert_int_equal(rig_open_fds(), fds);
	assert_int_equal(fake_daemon_memories(g.rig.daemon), 0);
	gpu_deinit(&g);
}

static void asks_no_daemon_of_before(void **state)
{
	const uint8_t event[64] = { 0 };
	struct skvc_session *old = NULL;
	struct gpu_rig g;
	uint32_t ns, region = 5;

	(void)state;
	gpu_init(&g);
	g.rig.session = skvc_close(g.rig.session);
	fake_daemon_fault(g.rig.daemon, FAKE_HELLO_MINOR);
	assert_int_equal(skvc_open(fake_daemon_path(g.rig.daemon), NULL, &old), 0);
	assert_int_equal(rig_namespace(old, "m", &ns), 0);
	assert_int_equal(skvc_register_gpu(old, ns, &g.memory, 1, 1, NULL, &region), -EOPNOTSUPP);
	assert_non_null(strstr(skvc_last_error(old), "1.0"));
	assert_int_equal(skvc_register_gpu_event(old, event, &region), -EOPNOTSUPP);
	assert_int_equal(skvc_namespace_prefill(old, ns, 1), -EOPNOTSUPP);
	/* The session is as good as it was: nothing was sent that such a daemon would end it for. */
	assert_int_equal(rig_namespace(old, "n", &ns), 0);
	g.rig.session = old;
	gpu_deinit(&g);
}

static void passes_a_refusal_on(void **state)
{
	const uint8_t event[64] = { 1 };
	uint32_t region = 5;
	struct gpu_rig g;
	unsigned fds;

	(void)state;
	gpu_init(&g);
	fds = rig_open_fds();
	fake_daemon_gpu(g.rig.daemon, false);
	assert_int_equal(packed(&g, 4, &region), -EOPNOTSUPP);
	assert_int_equal(skvc_register_gpu_event(g.rig.session, event, &region), -EOPNOTSUPP);
	fake_daemon_gpu(g.rig.daemon, true);
	g.memory.type = SKVC_GPU_IPC_HANDLE;
	g.memory.allocation_bytes = 2u << 20; /* twice what the fake's handles name */
	assert_int_equal(packed(&g, 4, &region), -ERANGE);
	assert_non_null(strstr(skvc_last_error(g.rig.session), "bad-memory"));
	assert_int_equal(region, 5);
	assert_int_equal(rig_open_fds(), fds);
	gpu_deinit(&g);
}

/* ---- what is sent ---- */

static struct skvc_completion store(struct gpu_rig *g, uint32_t region, uint32_t key,
				    uint32_t block, uint32_t ready)
{
	const struct skvc_key k = rig_key(key);
	const struct skvc_store args = { .ns = g->rig.ns,
					 .region = region,
					 .count = 1,
					 .keys = &k,
					 .blocks = &block,
					 .ready_event = ready };
	uint64_t job;

	assert_int_equal(skvc_store(g->rig.session, &args, &job), 0);
	return rig_finish(&g->rig, job);
}

static struct skvc_completion load(struct gpu_rig *g, uint32_t region, uint32_t key, uint32_t block,
				   uint32_t ready, uint32_t done)
{
	const struct skvc_key k = rig_key(key);
	const struct skvc_lookup lookup = { .ns = g->rig.ns, .count = 1, .keys = &k };
	struct skvc_load args = { .region = region,
				  .count = 1,
				  .blocks = &block,
				  .ready_event = ready,
				  .done_event = done };
	uint64_t job;

	assert_int_equal(skvc_lookup(g->rig.session, &lookup, &job), 0);
	args.lease = rig_finish(&g->rig, job).lease;
	assert_int_equal(skvc_load(g->rig.session, &args, &job), 0);
	return rig_finish(&g->rig, job);
}

static void assert_works(struct gpu_rig *g, uint32_t region, uint32_t ready, uint32_t done,
			 uint32_t key)
{
	uint32_t recorded = fake_daemon_recorded(g->rig.daemon);

	memset(g->pages + RIG_BLOCK_BYTES, (int)key + 1, RIG_BLOCK_BYTES);
	assert_int_equal(store(g, region, key, 1, ready).res, 0);
	assert_int_equal(load(g, region, key, 2, ready, done).res, 0);
	assert_memory_equal(g->pages + 2 * (size_t)RIG_BLOCK_BYTES, g->pages + RIG_BLOCK_BYTES,
			    RIG_BLOCK_BYTES);
	assert_int_equal(fake_daemon_recorded(g->rig.daemon), recorded + (done ? 1 : 0));
}

static void stores_and_loads_with_events(void **state)
{
	uint32_t region = 0, ready, done;
	struct gpu_rig g;

	(void)state;
	gpu_init(&g);
	assert_int_equal(packed(&g, 8, &region), 0);
	/* The allocation's own handle is given back; the region holds it. */
	assert_int_equal(fake_daemon_memories(g.rig.daemon), 1);
	ready = new_event(&g);
	done = new_event(&g);
	assert_works(&g, region, 0, 0, 50);
	assert_works(&g, region, ready, 0, 51);
	assert_works(&g, region, ready, done, 52);
	assert_works(&g, region, 0, done, 53);
	assert_int_equal(skvc_unregister(g.rig.session, region), 0);
	assert_int_equal(fake_daemon_memories(g.rig.daemon), 0);
	assert_int_equal(skvc_unregister(g.rig.session, ready), 0);
	assert_int_equal(skvc_unregister(g.rig.session, done), 0);
	assert_int_equal(fake_daemon_events(g.rig.daemon), 0);
	gpu_deinit(&g);
}

static void wants_the_right_handles(void **state)
{
	const struct skvc_key key = rig_key(1);
	const uint32_t block = 0;
	struct skvc_store args = { .count = 1, .keys = &key, .blocks = &block };
	struct skvc_load l = { .lease = 1, .count = 1, .blocks = &block };
	struct skvc_session *s;
	uint32_t region = 0, event;
	struct gpu_rig g;
	uint64_t job;

	(void)state;
	gpu_init(&g);
	s = g.rig.session;
	assert_int_equal(packed(&g, 8, &region), 0);
	event = new_event(&g);
	args.ns = g.rig.ns;
	args.region = event;
	assert_int_equal(skvc_store(s, &args, &job), -ESTALE);
	args.region = l.region = region;
	args.ready_event = region;
	assert_int_equal(skvc_store(s, &args, &job), -ESTALE);
	args.ready_event = event + 1;
	assert_int_equal(skvc_store(s, &args, &job), -ESTALE);
	l.done_event = region;
	assert_int_equal(skvc_load(s, &l, &job), -ESTALE);
	l.done_event = 0;
	l.ready_event = 0xffffffff;
	assert_int_equal(skvc_load(s, &l, &job), -ESTALE);
	/* Host memory has no order with a GPU's streams. */
	l.region = args.region = g.rig.region;
	args.ready_event = l.ready_event = event;
	assert_int_equal(skvc_store(s, &args, &job), -EINVAL);
	assert_int_equal(skvc_load(s, &l, &job), -EINVAL);
	l.ready_event = 0;
	l.done_event = event;
	assert_int_equal(skvc_load(s, &l, &job), -EINVAL);
	assert_int_equal(skvc_unregister(s, event), 0);
	args.region = region;
	assert_int_equal(skvc_store(s, &args, &job), -ESTALE);
	assert_int_equal(skvc_unregister(s, event), -ESTALE);
	gpu_deinit(&g);
}

static void *release_soon(void *user)
{
	(void)usleep(50000);
	fake_daemon_hold(user, false);
	return NULL;
}

static void an_event_in_use_is_waited_for(void **state)
{
	const struct skvc_key key = rig_key(1);
	const uint32_t block = 0;
	struct skvc_store args = { .count = 1, .keys = &key, .blocks = &block };
	struct skvc_completion done;
	uint32_t region = 0, event;
	struct gpu_rig g;
	pthread_t thread;
	uint64_t job;

	(void)state;
	gpu_init(&g);
	assert_int_equal(packed(&g, 8, &region), 0);
	event = new_event(&g);
	fake_daemon_hold(g.rig.daemon, true);
	args.ns = g.rig.ns;
	args.region = region;
	args.ready_event = event;
	assert_int_equal(skvc_store(g.rig.session, &args, &job), 0);
	assert_int_equal(skvc_result(g.rig.session, job, &done), -EINPROGRESS);
	assert_int_equal(pthread_create(&thread, NULL, release_soon, g.rig.daemon), 0);
	assert_int_equal(skvc_unregister(g.rig.session, event), 0);
	assert_int_equal(skvc_result(g.rig.session, job, &done), 0);
	assert_int_equal(done.res, 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	gpu_deinit(&g);
}

/* K and V of each of two layers in allocations of their own; the fake looks at the first one's place. */
static void scatter_init(struct gpu_rig *g, struct skvc_gpu_export *memories,
			 struct skvc_gpu_stride *strides)
{
	for (uint32_t i = 0; i < RIG_SEGMENTS; i++) {
		memories[i] = (struct skvc_gpu_export){ .type = SKVC_GPU_IPC_HANDLE,
							.allocation_bytes = 1 << 16 };
		memories[i].ipc_handle[0] = (uint8_t)i;
		strides[i] = (struct skvc_gpu_stride){ .memory = RIG_SEGMENTS - 1 - i,
						       .block_stride = RIG_BLOCK_BYTES };
	}
	memories[RIG_SEGMENTS - 1] = g->memory;
}

static void segments_lie_in_several_allocations(void **state)
{
	struct skvc_gpu_export memories[RIG_SEGMENTS];
	struct skvc_gpu_stride strides[RIG_SEGMENTS];
	uint32_t region = 0;
	struct gpu_rig g;

	(void)state;
	gpu_init(&g);
	scatter_init(&g, memories, strides);
	assert_int_equal(skvc_register_gpu(g.rig.session, g.rig.ns, memories, RIG_SEGMENTS, 8,
					   strides, &region),
			 0);
	assert_int_equal(fake_daemon_memories(g.rig.daemon), RIG_SEGMENTS);
	assert_works(&g, region, 0, 0, 60);
	assert_int_equal(skvc_unregister(g.rig.session, region), 0);
	assert_int_equal(fake_daemon_memories(g.rig.daemon), 0);
	/* What no stride names is opened, found unused, and not kept. */
	for (uint32_t i = 0; i < RIG_SEGMENTS; i++)
		strides[i].memory = RIG_SEGMENTS - 1;
	assert_int_equal(skvc_register_gpu(g.rig.session, g.rig.ns, memories, RIG_SEGMENTS, 8,
					   strides, &region),
			 0);
	assert_int_equal(fake_daemon_memories(g.rig.daemon), 1);
	gpu_deinit(&g);
}

static void gives_back_what_was_opened_half_way(void **state)
{
	static const struct {
		enum fake_fault fault;
		int res;
	} cases[] = { { FAKE_MEMORY_SECOND, -EINVAL }, { FAKE_LAYOUT, -ERANGE } };
	struct skvc_gpu_export memories[RIG_SEGMENTS];
	struct skvc_gpu_stride strides[RIG_SEGMENTS];
	uint32_t region = 5;
	struct gpu_rig g;
	unsigned fds;

	(void)state;
	gpu_init(&g);
	scatter_init(&g, memories, strides);
	fds = rig_open_fds();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fake_daemon_fault(g.rig.daemon, cases[i].fault);
		assert_int_equal(skvc_register_gpu(g.rig.session, g.rig.ns, memories, RIG_SEGMENTS,
						   8, strides, &region),
				 cases[i].res);
		assert_int_equal(fake_daemon_memories(g.rig.daemon), 0);
		assert_int_equal(rig_open_fds(), fds);
	}
	fake_daemon_fault(g.rig.daemon, FAKE_NONE);
	assert_int_equal(region, 5);
	assert_int_equal(packed(&g, 8, &region), 0);
	assert_works(&g, region, 0, 0, 61);
	fake_daemon_fault(g.rig.daemon, FAKE_LAYOUT_HANGUP);
	assert_int_equal(packed(&g, 8, &region), -EPIPE);
	assert_int_equal(rig_open_fds() < fds + 4, 1);
	gpu_deinit(&g);
}

static void comes_back_after_a_reconnect(void **state)
{
	struct skvc_gpu_export memories[RIG_SEGMENTS];
	struct skvc_gpu_stride strides[RIG_SEGMENTS];
	uint32_t one = 0, four = 0, ready, done;
	struct gpu_rig g;

	(void)state;
	gpu_init(&g);
	scatter_init(&g, memories, strides);
	assert_int_equal(packed(&g, 8, &one), 0);
	ready = new_event(&g);
	assert_int_equal(skvc_register_gpu(g.rig.session, g.rig.ns, memories, RIG_SEGMENTS, 8,
					   strides, &four),
			 0);
	done = new_event(&g);
	/* The library has descriptors of its own. */
	(void)close(g.memory.fd);
	g.memory.fd = -1;
	for (uint32_t round = 0; round < 3; round++) {
		assert_works(&g, one, ready, done, 70 + 2 * round);
		assert_works(&g, four, done, ready, 71 + 2 * round);
		fake_daemon_kill(g.rig.daemon);
		assert_int_equal(fake_daemon_memories(g.rig.daemon), 0);
		fake_daemon_restart(g.rig.daemon);
		if (round == 1) {
			fake_daemon_fault(g.rig.daemon, FAKE_LAYOUT);
			assert_int_equal(skvc_reconnect(g.rig.session), -ERANGE);
			fake_daemon_fault(g.rig.daemon, FAKE_NONE);
		}
		assert_int_equal(skvc_reconnect(g.rig.session), 0);
		assert_int_equal(fake_daemon_memories(g.rig.daemon), 1 + RIG_SEGMENTS);
		assert_int_equal(fake_daemon_events(g.rig.daemon), 2);
	}
	assert_int_equal(skvc_unregister(g.rig.session, four), 0);
	assert_works(&g, one, ready, done, 90);
	gpu_deinit(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuses_what_cannot_be),
		cmocka_unit_test(asks_no_daemon_of_before),
		cmocka_unit_test(passes_a_refusal_on),
		cmocka_unit_test(stores_and_loads_with_events),
		cmocka_unit_test(wants_the_right_handles),
		cmocka_unit_test(an_event_in_use_is_waited_for),
		cmocka_unit_test(segments_lie_in_several_allocations),
		cmocka_unit_test(gives_back_what_was_opened_half_way),
		cmocka_unit_test(comes_back_after_a_reconnect),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
