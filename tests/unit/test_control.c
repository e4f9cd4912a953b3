/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_control.c - what a client can do to the control socket, and what it cannot: a real control thread and
 * lane in this process against a client that writes packets byte by byte.  After every test nothing of
 * its clients may be left: no session, no descriptor, no mapping.
 */
#include "tests/lib/control_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/client.h"
#include "daemon/util/clock.h"
#include "ipc/segment.h"
#include "tests/lib/raw_client.h"
#include "tests/lib/rng.h"

#ifdef SKVCD_SAN
#define RELEASE_MS 2000u /* sanitizers and a busy machine */
#else
#define RELEASE_MS 100u
#endif
#define WAIT_MS 10000
#define CHILD_S 30u /* a child that nobody killed ends by itself */
#define ARENA_BYTES (1u << 20)

static struct control_rig rig;
static unsigned fds_before;

static const char *const overrides[] = {
	"daemon.sessions_max=4",
	"limits.sessions_per_user=4",
	"host.arena_session=4M",
	"host.arena_total=6M",
	"limits.arenas_per_user=6M",
	"tenant team.uid=70000",
	NULL,
};

static int setup(void **state)
{
	(void)state;
	fds_before = control_rig_open_fds();
	control_rig_start(&rig, overrides);
	return 0;
}

/* Everything that clients had is given back, though the daemon runs on. */
static void assert_released(void)
{
	if (control_rig_wait_sessions(&rig, 0, RELEASE_MS) < 0)
		fail_msg("a session is left");
	for (unsigned ms = 0; ms < RELEASE_MS && control_rig_mappings("skvcd-session"); ms++)
		(void)usleep(1000);
	assert_int_equal(control_rig_mappings("skvcd-session"), 0);
	assert_int_equal(control_rig_mappings("skvcd-arena"), 0);
}

static int teardown(void **state)
{
	(void)state;
	assert_released();
	assert_int_equal(control_rig_stop(&rig), 0);
	assert_int_equal(control_rig_fds_left(fds_before), fds_before);
	return 0;
}

static void open_client(struct raw_client *c)
{
	int r = raw_client_open(c, rig.config.socket, 8);

	if (r < 0)
		fail_msg("no session: %s", strerror(-r));
}

static uint64_t counted(enum stats_id id)
{
	return control_stat(rig.control, id);
}

static void assert_error(const struct raw_client *c, int res, uint16_t reason)
{
	assert_int_equal(c->answer.h.type, CTL_ERROR);
	assert_int_equal(c->answer.error.res, res);
	assert_int_equal(c->answer.error.reason, reason);
	assert_true(c->answer.error.text[0]);
	assert_int_equal(c->answer.error.abi_major, SKVC_ABI_MAJOR);
}

/* An error answer, perhaps, and then the end. */
static void assert_ended(struct raw_client *c)
{
	int r = raw_client_recv(c, WAIT_MS);

	while (r > 0)
		r = raw_client_recv(c, WAIT_MS);
	if (r != 0)
		fail_msg("the daemon did not close: %s", strerror(-r));
}

static int ask(struct raw_client *c, void *message, uint16_t type, size_t bytes)
{
	int r = raw_client_request(c, message, type, bytes);

	if (r > 0)
		assert_int_equal(c->answer.h.seq, c->seq);
	return r;
}

union open_message {
	struct ctl_ns_open m;
	uint8_t bytes[sizeof(struct ctl_ns_open) + 2 * sizeof(struct skvc_abi_segment)];
};

static union open_message ns_message(const char *model)
{
	union open_message o = { .m = { .block_tokens = 16, .segments_count = 2 } };

	o.m.segments[0] = (struct skvc_abi_segment){ 1, 1, 0, 2, 64 };
	o.m.segments[1] = (struct skvc_abi_segment){ 2, 1, 0, 2, 64 };
	(void)snprintf((char *)o.m.model, sizeof(o.m.model), "%s", model);
	return o;
}

static int ask_ns(struct raw_client *c, const char *model)
{
	union open_message o = ns_message(model);

	return ask(c, &o, CTL_NS_OPEN, sizeof(o));
}

static int ask_arena(struct raw_client *c, uint64_t bytes)
{
	struct ctl_arena_new m = { .bytes = bytes };

	return ask(c, &m, CTL_ARENA_NEW, sizeof(m));
}

static int ask_region(struct raw_client *c, uint32_t ns, uint32_t arena, uint32_t blocks,
		      uint64_t offset)
{
	struct ctl_region_host m = {
		.ns = ns, .arena = arena, .blocks_count = blocks, .offset = offset
	};

	return ask(c, &m, CTL_REGION_HOST, sizeof(m));
}

static int ask_free(struct raw_client *c, uint16_t type, uint32_t handle)
{
	struct ctl_free m = { .handle = handle };

	return ask(c, &m, type, sizeof(m));
}

static void use_memory(struct raw_client *c)
{
	assert_int_equal(ask_ns(c, "m"), CTL_NS);
	assert_int_equal(ask_arena(c, ARENA_BYTES), CTL_ARENA);
	assert_int_equal(ask_region(c, 1, 1, 16, 0), CTL_REGION);
}

/* The daemon is well: a stranger gets everything done. */
static void assert_serves(void)
{
	struct raw_client c;

	open_client(&c);
	use_memory(&c);
	raw_client_close(&c);
}

/* ---- what works ---- */

static void test_handshake(void **state)
{
	struct raw_client c;

	(void)state;
	open_client(&c);
	assert_int_equal(c.answer_fds_count, 0); /* the eventfds were taken, the memfd was mapped */
	assert_int_equal(segment_check_header(&c.layout, c.segment_bytes), 0);
	assert_int_equal(c.layout.sq_entries, 8);
	assert_true(c.layout.session_id > 0);
	assert_true(fcntl(c.sq_fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(c.cq_fd, F_GETFL) & O_NONBLOCK);
	assert_int_equal(control_rig_wait_sessions(&rig, 1, WAIT_MS) < 0, 0);
	assert_int_equal(counted(STAT_SESSIONS_OPENED), 1);
	raw_client_close(&c);
}

static void test_memory(void **state)
{
	struct raw_client c;
	uint32_t arena, region;

	(void)state;
	open_client(&c);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	assert_int_equal(c.answer.ns.ns, 1);
	assert_int_equal(c.answer.ns.block_raw_bytes, 2 * 16 * 2 * 64 * 2);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	assert_int_equal(c.answer.ns.ns, 1); /* the same handle again */
	assert_int_equal(ask_ns(&c, "n"), CTL_NS);
	assert_int_equal(c.answer.ns.ns, 2);
	assert_int_equal(ask_arena(&c, ARENA_BYTES), CTL_ARENA);
	arena = c.answer.arena.arena;
	assert_int_equal(c.answer_fds_count, 1);
	assert_int_equal(segment_check_fd(c.answer_fds[0], ARENA_BYTES), 0);
	assert_int_equal(ask_region(&c, 1, arena, ARENA_BYTES / 8192, 0), CTL_REGION);
	region = c.answer.region.handle;
	assert_int_equal(ask_region(&c, 1, arena, 1, ARENA_BYTES - 8192), CTL_REGION);
	assert_int_equal(ask_free(&c, CTL_ARENA_FREE, arena), CTL_ERROR);
	assert_error(&c, -EBUSY, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_free(&c, CTL_REGION_FREE, region), CTL_OK);
	assert_int_equal(ask_free(&c, CTL_REGION_FREE, region), CTL_ERROR);
	assert_error(&c, -ESTALE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_free(&c, CTL_REGION_FREE, region + 1), CTL_OK);
	assert_int_equal(ask_free(&c, CTL_ARENA_FREE, arena), CTL_OK);
	assert_int_equal(control_rig_mappings("skvcd-arena"), 0);
	assert_int_equal(ask_free(&c, CTL_ARENA_FREE, arena), CTL_ERROR);
	assert_error(&c, -ESTALE, SKVC_ABI_REASON_BAD_REGION);
	raw_client_close(&c);
}

static void test_bye(void **state)
{
	struct ctl_header bye;
	struct raw_client c;

	(void)state;
	open_client(&c);
	use_memory(&c);
	assert_int_equal(ask(&c, &bye, CTL_BYE, sizeof(bye)), CTL_OK);
	/* The answer comes when nothing touches the client's memory any more. */
	assert_int_equal(counted(STAT_SESSIONS), 0);
	assert_int_equal(raw_client_recv(&c, WAIT_MS), 0);
	assert_int_equal(counted(STAT_SESSIONS_FAILED), 0);
	raw_client_close(&c);
}

/* ---- what is refused, while the session goes on ---- */

static void test_region_bounds(void **state)
{
	union {
		struct ctl_region_host m;
		uint8_t bytes[sizeof(struct ctl_region_host) + 2 * sizeof(struct skvc_abi_stride)];
	} r = { .m = { .ns = 1, .arena = 1, .blocks_count = 4, .strides_count = 2 } };
	struct raw_client c;

	(void)state;
	open_client(&c);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	assert_int_equal(ask_arena(&c, ARENA_BYTES), CTL_ARENA);
	assert_int_equal(ask_region(&c, 1, 1, ARENA_BYTES / 8192 + 1, 0), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 1, 1, UINT32_MAX, 0), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 1, 1, 1, ARENA_BYTES - 8190), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 1, 1, 1, ARENA_BYTES), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 1, 1, 1, UINT64_MAX - 100), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 3, 1, 1, 0), CTL_ERROR);
	assert_error(&c, -EINVAL, SKVC_ABI_REASON_BAD_NAMESPACE);
	assert_int_equal(ask_region(&c, UINT32_MAX, 1, 1, 0), CTL_ERROR);
	assert_int_equal(ask_region(&c, 1, 2, 1, 0), CTL_ERROR);
	assert_error(&c, -EINVAL, SKVC_ABI_REASON_BAD_REGION);
	assert_int_equal(ask_region(&c, 1, UINT32_MAX, 1, 0), CTL_ERROR);
	/* Given strides: good ones, then one that wraps around, one that overlaps, one too few. */
	r.m.strides[0] = (struct skvc_abi_stride){ 0, 8192, 256, 128 };
	r.m.strides[1] = (struct skvc_abi_stride){ 4096, 8192, 256, 128 };
	assert_int_equal(ask(&c, &r, CTL_REGION_HOST, sizeof(r)), CTL_REGION);
	r.m.strides[1].off = UINT64_MAX - 4095;
	assert_int_equal(ask(&c, &r, CTL_REGION_HOST, sizeof(r)), CTL_ERROR);
	assert_error(&c, -ERANGE, SKVC_ABI_REASON_BAD_REGION);
	r.m.strides[1] = (struct skvc_abi_stride){ 4096, 8192, 0, 128 };
	assert_int_equal(ask(&c, &r, CTL_REGION_HOST, sizeof(r)), CTL_ERROR);
	assert_error(&c, -EINVAL, SKVC_ABI_REASON_BAD_REGION);
	r.m.strides_count = 1;
	assert_int_equal(ask(&c, &r, CTL_REGION_HOST, sizeof(r) - sizeof(r.m.strides[0])),
			 CTL_ERROR);
	assert_error(&c, -EINVAL, SKVC_ABI_REASON_BAD_REGION);
	raw_client_close(&c);
}

static void test_limits(void **state)
{
	union open_message o = ns_message("large");
	struct raw_client c, d, more[4];
	char model[16];

	(void)state;
	open_client(&c);
	open_client(&d);
	assert_int_equal(ask_arena(&c, 3 << 20), CTL_ARENA);
	assert_int_equal(ask_arena(&c, 2 << 20), CTL_ERROR);
	assert_error(&c, -EDQUOT, SKVC_ABI_REASON_MEMORY_LIMIT);
	assert_int_equal(ask_arena(&c, UINT64_MAX - 4095),
			 CTL_ERROR); /* no size at all: the session ends */
	assert_error(&c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE);
	assert_ended(&c);
	raw_client_close(&c);
	open_client(&c);
	assert_int_equal(ask_arena(&c, 3 << 20), CTL_ARENA);
	assert_int_equal(ask_arena(&d, 4 << 20), CTL_ERROR); /* of all together */
	assert_error(&d, -EDQUOT, SKVC_ABI_REASON_MEMORY_LIMIT);
	for (unsigned i = 0; i < SESSION_NS_MAX; i++) {
		(void)snprintf(model, sizeof(model), "m%u", i);
		assert_int_equal(ask_ns(&c, model), CTL_NS);
		assert_int_equal(c.answer.ns.ns, i + 1);
	}
	assert_int_equal(ask_ns(&c, "one more"), CTL_ERROR);
	assert_error(&c, -EUSERS, SKVC_ABI_REASON_MEMORY_LIMIT);
	assert_int_equal(ask_ns(&c, "m0"), CTL_NS);
	o.m.block_tokens = 1024;
	o.m.segments[0].heads = o.m.segments[1].heads = 1024;
	assert_int_equal(ask(&d, &o, CTL_NS_OPEN, sizeof(o)), CTL_ERROR);
	assert_error(&d, -EFBIG, SKVC_ABI_REASON_TOO_LARGE);
	o.m.segments[0].heads = o.m.segments[1].heads = 8;
	assert_int_equal(ask(&d, &o, CTL_NS_OPEN, sizeof(o)), CTL_ERROR);
	assert_error(&d, -EFBIG, SKVC_ABI_REASON_TOO_LARGE);
	assert_non_null(strstr((const char *)d.answer.error.text, "[host] pool to "));
	open_client(&more[0]);
	open_client(&more[1]);
	assert_int_equal(raw_client_open(&more[2], rig.config.socket, 8) < 0, 1);
	assert_error(&more[2], -EUSERS, SKVC_ABI_REASON_SESSIONS_FULL);
	raw_client_close(&more[0]);
	assert_true(control_rig_wait_sessions(&rig, 3, RELEASE_MS) >= 0);
	open_client(&more[3]);
	raw_client_close(&c);
	raw_client_close(&d);
	raw_client_close(&more[1]);
	raw_client_close(&more[2]);
	raw_client_close(&more[3]);
}

static void test_many_arenas_and_regions(void **state)
{
	struct raw_client c;

	(void)state;
	open_client(&c);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	for (unsigned i = 0; i < SESSION_ARENAS_MAX; i++)
		assert_int_equal(ask_arena(&c, 8192), CTL_ARENA);
	assert_int_equal(ask_arena(&c, 8192), CTL_ERROR);
	assert_error(&c, -EDQUOT, SKVC_ABI_REASON_MEMORY_LIMIT);
	for (unsigned i = 0; i < SESSION_REGIONS_MAX; i++)
		assert_int_equal(ask_region(&c, 1, i % SESSION_ARENAS_MAX + 1, 1, 0), CTL_REGION);
	assert_int_equal(ask_region(&c, 1, 1, 1, 0), CTL_ERROR);
	assert_error(&c, -EDQUOT, SKVC_ABI_REASON_MEMORY_LIMIT);
	/* The handle that was given back is the next one. */
	assert_int_equal(ask_free(&c, CTL_REGION_FREE, 17), CTL_OK);
	assert_int_equal(ask_region(&c, 1, 1, 1, 0), CTL_REGION);
	assert_int_equal(c.answer.region.handle, 17);
	raw_client_close(&c);
}

static void test_scheduler_has_no_memory(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c;

	(void)state;
	assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
	hello.role = 1;
	assert_int_equal(ask(&c, &hello, CTL_HELLO, sizeof(hello)), CTL_WELCOME);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	assert_int_equal(ask_arena(&c, 8192), CTL_ERROR);
	assert_error(&c, -EPERM, SKVC_ABI_REASON_ROLE);
	assert_int_equal(ask_region(&c, 1, 1, 1, 0), CTL_ERROR);
	assert_error(&c, -EPERM, SKVC_ABI_REASON_ROLE);
	raw_client_close(&c);
}

static void test_gpu_is_not_here(void **state)
{
	struct ctl_memory_gpu m = { .memory_type = 1, .allocation_bytes = 4096 };
	struct ctl_region_gpu r = { .ns = 1, .memory = 1, .blocks_count = 1 };
	struct ctl_event_gpu e = { 0 };
	struct raw_client c;

	(void)state;
	open_client(&c);
	assert_int_equal(ask(&c, &m, CTL_MEMORY_GPU, sizeof(m)), CTL_ERROR);
	assert_error(&c, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
	assert_non_null(strstr((const char *)c.answer.error.text, "[gpu] device"));
	assert_int_equal(ask(&c, &r, CTL_REGION_GPU, sizeof(r)), CTL_ERROR);
	assert_error(&c, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
	assert_int_equal(ask(&c, &e, CTL_EVENT_GPU, sizeof(e)), CTL_ERROR);
	assert_error(&c, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS);
	raw_client_close(&c);
}

/* ---- what ends the session ---- */

static void test_wrong_order(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c;

	(void)state;
	assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
	assert_int_equal(ask_ns(&c, "m"), CTL_ERROR);
	assert_error(&c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE);
	assert_ended(&c);
	raw_client_close(&c);
	open_client(&c);
	assert_int_equal(ask(&c, &hello, CTL_HELLO, sizeof(hello)), CTL_ERROR);
	assert_error(&c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE);
	assert_ended(&c);
	raw_client_close(&c);
	assert_released();
	assert_int_equal(counted(STAT_SESSIONS_FAILED), 2);
	assert_int_equal(control_reason(rig.control, SKVC_ABI_REASON_BAD_MESSAGE), 2);
	assert_serves();
}

static void test_versions(void **state)
{
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c;

	(void)state;
	hello.abi_major = SKVC_ABI_MAJOR + 1;
	assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
	assert_int_equal(ask(&c, &hello, CTL_HELLO, sizeof(hello)), CTL_ERROR);
	assert_error(&c, -EPROTO, SKVC_ABI_REASON_VERSION);
	assert_ended(&c);
	raw_client_close(&c);
	hello = raw_client_hello(8);
	hello.abi_minor_min = SKVC_ABI_MINOR + 1;
	assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
	assert_int_equal(ask(&c, &hello, CTL_HELLO, sizeof(hello)), CTL_ERROR);
	assert_error(&c, -EPROTO, SKVC_ABI_REASON_VERSION);
	assert_ended(&c);
	raw_client_close(&c);
	hello = raw_client_hello(8);
	hello.abi_minor = SKVC_ABI_MINOR + 7; /* a newer client that takes an older daemon */
	assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
	assert_int_equal(ask(&c, &hello, CTL_HELLO, sizeof(hello)), CTL_WELCOME);
	raw_client_close(&c);
}

/* Every prefix of every message, each on a session of its own: never more than that session is hurt. */
static void test_half_messages(void **state)
{
	union open_message o = ns_message("m");
	struct ctl_hello hello = raw_client_hello(8);
	struct raw_client c;

	(void)state;
	ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), 1);
	for (size_t n = 1; n < sizeof(hello); n++) {
		assert_int_equal(raw_client_connect(&c, rig.config.socket), 0);
		assert_int_equal(raw_client_send(&c, &hello, n, NULL, 0), 0);
		assert_ended(&c);
		raw_client_close(&c);
	}
	ctl_msg_init(&o.m.h, CTL_NS_OPEN, sizeof(o), 1);
	for (size_t n = 1; n < sizeof(o); n += 13) {
		open_client(&c);
		assert_int_equal(raw_client_send(&c, &o, n, NULL, 0), 0);
		assert_ended(&c);
		raw_client_close(&c);
		assert_released();
	}
	assert_serves();
}

static void test_garbage(void **state)
{
	static uint8_t packet[CTL_MSG_BYTES_MAX + 4096];
	struct rng rng = { .state = 11 };
	struct raw_client c;

	(void)state;
	for (unsigned round = 0; round < 300; round++) {
		size_t bytes = 1 + rng_below(&rng, rng_one_in(&rng, 10) ? sizeof(packet) : 512);

		open_client(&c);
		for (size_t i = 0; i < bytes; i++)
			packet[i] = (uint8_t)rng_next(&rng);
		/* Most get past the header, so that the checks behind it are reached. */
		if (bytes >= sizeof(struct ctl_header) && !rng_one_in(&rng, 4))
			ctl_msg_init((struct ctl_header *)packet,
				     (uint16_t)(1 + rng_below(&rng, 10)), (uint32_t)bytes, round);
		assert_int_equal(raw_client_send(&c, packet, bytes, NULL, 0), 0);
		assert_true(raw_client_recv(&c, WAIT_MS) >= 0);
		raw_client_close(&c);
		assert_true(control_rig_wait_sessions(&rig, 0, WAIT_MS) >= 0);
	}
	assert_serves();
}

/* More descriptors than fdpass_send() takes: a packet by hand. */
static void send_with_fds(struct raw_client *c, const void *packet, size_t bytes, unsigned count)
{
	char control[CMSG_SPACE(8 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)packet, bytes };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	assert_true(count <= 8);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
	for (unsigned i = 0; i < count; i++)
		((int *)(void *)CMSG_DATA(cmsg))[i] = STDIN_FILENO;
	assert_int_equal(sendmsg(c->sock, &msg, MSG_NOSIGNAL), bytes);
}

static void test_descriptors(void **state)
{
	struct ctl_memory_gpu gpu = { .memory_type = 2, .allocation_bytes = 4096 };
	union open_message o = ns_message("m");
	struct raw_client c;
	unsigned before;

	(void)state;
	/* Where one belongs it is closed, since nothing here can use it. */
	open_client(&c);
	assert_int_equal(ask_ns(&c, "m"), CTL_NS); /* it is done with the handshake's */
	before = control_rig_open_fds();
	ctl_msg_init(&gpu.h, CTL_MEMORY_GPU, sizeof(gpu), 1);
	send_with_fds(&c, &gpu, sizeof(gpu), 1);
	assert_true(raw_client_recv(&c, WAIT_MS) > 0);
	assert_error(&c, -EOPNOTSUPP, SKVC_ABI_REASON_NONE);
	for (unsigned ms = 0; ms < RELEASE_MS && control_rig_open_fds() != before; ms++)
		(void)usleep(1000); /* the answer may be here before it is closed */
	assert_int_equal(control_rig_open_fds(), before);
	raw_client_close(&c);
	/* Elsewhere, or more than any message has: closed, and the session with them. */
	for (unsigned count = 1; count <= 8; count++) {
		open_client(&c);
		ctl_msg_init(&o.m.h, CTL_NS_OPEN, sizeof(o), 1);
		send_with_fds(&c, &o, sizeof(o), count);
		assert_true(raw_client_recv(&c, WAIT_MS) > 0);
		assert_error(&c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE);
		assert_ended(&c);
		raw_client_close(&c);
		assert_released();
	}
	assert_int_equal(counted(STAT_SESSIONS_FAILED), 8);
	assert_serves();
}

/* Requests without end, answers never read: the daemon's memory is not the client's to fill. */
static void test_flood_without_reading(void **state)
{
	struct ctl_event_gpu m = { 0 };
	struct raw_client c;
	uint64_t start_ns = clock_now_ns();
	unsigned sent = 0;
	int r = 0;

	(void)state;
	open_client(&c);
	assert_int_equal(fcntl(c.sock, F_SETFL, O_NONBLOCK), 0);
	while (r == 0 || r == -EAGAIN) {
		ctl_msg_init(&m.h, CTL_EVENT_GPU, sizeof(m), sent);
		r = raw_client_send(&c, &m, sizeof(m), NULL, 0);
		sent += r == 0;
		if (r == -EAGAIN) {
			/* Others are served while this one has its socket full. */
			assert_serves();
			(void)usleep(20000);
		}
		if (clock_now_ns() - start_ns > 30 * CLOCK_NS_PER_S)
			fail_msg("still connected after %u requests", sent);
	}
	assert_true(r == -EPIPE || r == -ECONNRESET);
	assert_true(counted(STAT_SESSIONS_FAILED) == 1);
	raw_client_close(&c);
	assert_serves();
}

/* A flood that reads its answers is served at a bounded rate, and nobody waits for it. */
static void test_flood_is_paced(void **state)
{
	struct ctl_event_gpu m = { 0 };
	struct raw_client c;
	uint64_t start_ns, took_ns;

	(void)state;
	open_client(&c);
	start_ns = clock_now_ns();
	for (unsigned i = 0; i < 2 * CLIENT_REQUESTS_PER_S + 2; i++)
		assert_int_equal(ask(&c, &m, CTL_EVENT_GPU, sizeof(m)), CTL_ERROR);
	took_ns = clock_now_ns() - start_ns;
	assert_true(took_ns > CLOCK_NS_PER_S);
	/* BYE is never refused for what came before. */
	raw_client_close(&c);
}

/* Connections that say nothing: bounded at once, closed after 5 s, and the rest is served meanwhile. */
static void test_silence(void **state)
{
	struct raw_client silent[20];
	unsigned closed = 0;
	uint64_t start_ns = clock_now_ns();

	(void)state;
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(raw_client_connect(&silent[i], rig.config.socket), 0);
	for (unsigned i = 0; i < 20; i++)
		closed += raw_client_recv(&silent[i], i ? 50 : 500) == 0;
	assert_int_equal(closed, 4); /* 16 of one user may wait */
	raw_client_close(&silent[15]);
	(void)usleep(50000);
	assert_serves();
	assert_ended(&silent[0]);
	assert_in_range(clock_now_ns() - start_ns, CLIENT_HELLO_NS - 100 * CLOCK_NS_PER_MS,
			CLIENT_HELLO_NS + 3 * CLOCK_NS_PER_S);
	for (unsigned i = 0; i < 20; i++)
		raw_client_close(&silent[i]);
	assert_serves();
}

/* ---- death ---- */

/* In a child: everything up to `stage`, then wait to be killed. */
static void live_until(unsigned stage, int ready)
{
	union open_message o = ns_message("m");
	struct ctl_hello hello = raw_client_hello(8);
	struct ctl_header bye;
	struct raw_client c;
	int r;

	(void)alarm(CHILD_S);
	r = raw_client_connect(&c, rig.config.socket);
	ctl_msg_init(&hello.h, CTL_HELLO, sizeof(hello), 1);
	ctl_msg_init(&o.m.h, CTL_NS_OPEN, sizeof(o), 2);
	ctl_msg_init(&bye, CTL_BYE, sizeof(bye), 3);
	if (!r && stage == 1)
		r = raw_client_send(&c, &hello, sizeof(hello), NULL, 0);
	if (!r && stage >= 2)
		r = raw_client_request(&c, &hello, CTL_HELLO, sizeof(hello)) == CTL_WELCOME
			    ? 0
			    : -EPROTO;
	if (!r && stage == 3)
		r = raw_client_send(&c, &o, sizeof(o), NULL, 0);
	if (!r && stage >= 4) {
		r = ask_ns(&c, "m") == CTL_NS && ask_arena(&c, ARENA_BYTES) == CTL_ARENA &&
				    ask_region(&c, 1, 1, 16, 0) == CTL_REGION
			    ? 0
			    : -EPROTO;
	}
	if (!r && stage == 5)
		r = raw_client_send(&c, &bye, sizeof(bye), NULL, 0);
	if (r || write(ready, "r", 1) != 1)
		_exit(1);
	for (;;)
		(void)pause();
}

static void test_killed_at_every_stage(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 18; round++) {
		unsigned stage = round % 6;
		int pipe_fds[2], status;
		pid_t pid;
		char r;

		assert_int_equal(pipe(pipe_fds), 0);
		pid = fork();
		assert_true(pid >= 0);
		if (!pid)
			live_until(stage, pipe_fds[1]);
		(void)close(pipe_fds[1]);
		assert_int_equal(read(pipe_fds[0], &r, 1), 1);
		(void)close(pipe_fds[0]);
		assert_int_equal(kill(pid, SIGKILL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		assert_released();
	}
	assert_int_equal(counted(STAT_SESSIONS_FAILED), 0);
	assert_serves();
}

/* A child that inherited the socket does not keep a dead client's session. */
static void test_orphaned_socket(void **state)
{
	int pipe_fds[2], status;
	pid_t pid, heir = 0;

	(void)state;
	assert_int_equal(pipe(pipe_fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct raw_client c;

		(void)alarm(CHILD_S);
		if (raw_client_open(&c, rig.config.socket, 8) < 0)
			_exit(1);
		heir = fork();
		if (!heir) {
			(void)alarm(CHILD_S); /* a parent's alarm is not inherited */
			for (;;)
				(void)pause();
		}
		if (write(pipe_fds[1], &heir, sizeof(heir)) != sizeof(heir))
			_exit(1);
		_exit(0);
	}
	assert_int_equal(read(pipe_fds[0], &heir, sizeof(heir)), sizeof(heir));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	(void)close(pipe_fds[0]);
	(void)close(pipe_fds[1]);
	assert_released();
	assert_int_equal(kill(heir, SIGKILL), 0);
}

static void test_shutdown_tells_clients(void **state)
{
	struct raw_client idle, silent, busy;
	unsigned before = control_rig_open_fds();

	(void)state;
	control_rig_start(&rig, overrides);
	open_client(&idle);
	open_client(&busy);
	use_memory(&busy);
	assert_int_equal(raw_client_connect(&silent, rig.config.socket), 0);
	assert_int_equal(control_rig_stop(&rig), 0);
	assert_int_equal(raw_client_end_reason(&idle, 0), SKVC_ABI_REASON_SHUTDOWN);
	assert_int_equal(raw_client_end_reason(&busy, 0), SKVC_ABI_REASON_SHUTDOWN);
	assert_int_equal(raw_client_recv(&idle, WAIT_MS), 0);
	assert_int_equal(raw_client_recv(&busy, WAIT_MS), 0);
	assert_int_equal(raw_client_recv(&silent, WAIT_MS), 0);
	raw_client_close(&idle);
	raw_client_close(&busy);
	raw_client_close(&silent);
	assert_int_equal(control_rig_fds_left(before), before);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_handshake),
		TEST(test_memory),
		TEST(test_bye),
		TEST(test_region_bounds),
		TEST(test_limits),
		TEST(test_many_arenas_and_regions),
		TEST(test_scheduler_has_no_memory),
		TEST(test_gpu_is_not_here),
		TEST(test_wrong_order),
		TEST(test_versions),
		TEST(test_half_messages),
		TEST(test_garbage),
		TEST(test_descriptors),
		TEST(test_flood_without_reading),
		TEST(test_flood_is_paced),
		TEST(test_silence),
		TEST(test_killed_at_every_stage),
		TEST(test_orphaned_socket),
		cmocka_unit_test(test_shutdown_tells_clients),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
