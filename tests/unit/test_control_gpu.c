/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_control_gpu.c - GPU memory of a client, on the control side: one connection, driven packet by packet on
 * this thread, a real lane behind it, and a device that can only open things (import_device.h).  After
 * every test nothing may be open.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/client.h"
#include "daemon/log.h"
#include "daemon/util/clock.h"
#include "ipc/fdpass.h"
#include "tests/lib/control_rig.h"
#include "tests/lib/import_device.h"
#include "tests/lib/raw_client.h"

#define REASON(name) SKVC_ABI_REASON_##name
#define EXPORT_BYTES (1u << 20)
#define BLOCK_BYTES 8192u /* 2 segments of 16 tokens, 2 heads, 64 bf16 */
#define SEGMENT_BYTES 4096u
#define WAIT_NS (20 * CLOCK_NS_PER_S)

static struct config config;
static struct registry *registry;
static struct lane *lane;
static struct stats stats;
static struct client_host host;
static struct import_device gpu;
static struct client *client;
static int sock; /* our end */
static uint32_t seq;
static unsigned fds_before;
static union {
	struct ctl_header h;
	struct ctl_welcome welcome;
	struct ctl_ns ns;
	struct ctl_region region;
	struct ctl_error error;
	uint8_t bytes[512];
} answer;

/* ---- the connection ---- */

static void take_mail(void)
{
	struct mail mail;

	while (mailbox_recv(lane_outbox(lane), &mail))
		if (mail.subject == &client->session)
			client_mail(client, &mail);
	client_host_flush(&host);
}

static bool is_readable(void)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void send_packet(void *packet, uint16_t type, size_t bytes, int fd)
{
	ctl_msg_init(packet, type, (uint32_t)bytes, ++seq);
	assert_int_equal(fdpass_send(sock, packet, bytes, &fd, fd >= 0 ? 1 : 0), 0);
	if (client->deadline_ns && client->state == CLIENT_IDLE)
		client_deadline(client); /* no test has the time to be paced */
	client_input(client);
}

static int take_answer(void)
{
	int fds[CTL_FDS_MAX], r;
	unsigned fds_count = 0;
	uint64_t until_ns = clock_now_ns() + WAIT_NS;

	while (!is_readable()) {
		take_mail();
		assert_true(clock_now_ns() < until_ns);
	}
	r = fdpass_recv(sock, &answer, sizeof(answer), fds, CTL_FDS_MAX, &fds_count, 0);
	for (unsigned i = 0; r > 0 && i < fds_count; i++)
		(void)close(fds[i]);
	assert_true(r > 0);
	return answer.h.type;
}

static int ask_fd(void *packet, uint16_t type, size_t bytes, int fd)
{
	send_packet(packet, type, bytes, fd);
	return take_answer();
}

#define ask(packet, type, bytes) ask_fd(packet, type, bytes, -1)

static void assert_refused(int type, int res, uint16_t reason)
{
	assert_int_equal(type, CTL_ERROR);
	assert_int_equal(answer.error.res, res);
	assert_int_equal(answer.error.reason, reason);
	assert_true(answer.error.text[0]);
	assert_int_equal(client->state, CLIENT_IDLE); /* the session goes on */
}

#define REFUSED(request, res, why) assert_refused(request, res, REASON(why))

static void says(const char *word)
{
	if (!strstr((const char *)answer.error.text, word))
		fail_msg("\"%s\" does not say %s", (const char *)answer.error.text, word);
}

static void connect_as(uint32_t role)
{
	struct listener_peer peer = { getpid(), getuid(), getgid(), -1 };
	struct ctl_hello hello = raw_client_hello(8);
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	sock = pair[0];
	assert_int_equal(client_new(&host, pair[1], &peer, &client), 0);
	hello.role = role;
	assert_int_equal(ask(&hello, CTL_HELLO, sizeof(hello)), CTL_WELCOME);
}

static void open_ns(uint32_t segments_count, uint32_t block_tokens)
{
	size_t bytes = sizeof(struct ctl_ns_open) +
		       segments_count * sizeof(struct skvc_abi_segment);
	struct ctl_ns_open *m = calloc(1, bytes);

	assert_non_null(m);
	m->block_tokens = block_tokens;
	m->segments_count = segments_count;
	(void)snprintf((char *)m->model, sizeof(m->model), "model");
	for (uint32_t i = 0; i < segments_count; i++)
		m->segments[i] = (struct skvc_abi_segment){ 1, 1, (uint16_t)i, 2, 64 };
	assert_int_equal(ask(m, CTL_NS_OPEN, bytes), CTL_NS);
	free(m);
}

static void wait_over(void)
{
	uint64_t until_ns = clock_now_ns() + WAIT_NS;

	while (client->state != CLIENT_OVER) {
		take_mail();
		assert_true(clock_now_ns() < until_ns);
	}
}

static void hang_up(void)
{
	if (sock >= 0)
		(void)close(sock);
	sock = -1;
	client_gone(client);
	wait_over();
	client_close(client);
	client = client_free(client);
}

static int setup(void **state)
{
	static const char *const own[] = { "host.pool=16M", "daemon.cpu_workers=1", "daemon.spin=0",
					   "daemon.state_dir=/nonexistent", NULL };
	const uint8_t secret[SECRET_BYTES] = { 1 };
	char err[512] = "";

	(void)state;
	fds_before = control_rig_open_fds();
	log_init(0);
	config_default(&config);
	for (unsigned i = 0; own[i]; i++)
		assert_int_equal(config_set(&config, own[i], err, sizeof(err)), 0);
	assert_int_equal(registry_new(&config, secret, &registry), 0);
	if (lane_start(&config, NULL, &lane, err, sizeof(err)))
		fail_msg("%s", err);
	assert_int_equal(client_host_init(&host, &config, lane, registry, &stats), 0);
	import_device_init(&gpu);
	host.gpu = &gpu.device;
	connect_as(0);
	open_ns(2, 16);
	return 0;
}

static int teardown(void **state)
{
	const struct mail stop = { .type = LANE_STOP };

	(void)state;
	hang_up();
	import_device_deinit(&gpu);
	client_host_deinit(&host);
	assert_int_equal(mailbox_send(lane_inbox(lane), &stop), 0);
	lane = lane_join(lane);
	registry = registry_free(registry);
	assert_int_equal(control_rig_fds_left(fds_before), fds_before);
	return 0;
}

/* ---- requests ---- */

static struct ctl_memory_gpu memory_message(uint8_t export, uint64_t bytes)
{
	struct ctl_memory_gpu m = { .memory_type = CTL_MEMORY_IPC_HANDLE,
				    .allocation_bytes = bytes };

	m.ipc_handle[0] = export;
	memcpy(m.device_uuid, gpu.facts.uuid, sizeof(m.device_uuid));
	return m;
}

static int ask_memory(uint8_t export)
{
	struct ctl_memory_gpu m = memory_message(export, EXPORT_BYTES);

	return ask(&m, CTL_MEMORY_GPU, sizeof(m));
}

static uint32_t new_memory(uint8_t export)
{
	assert_int_equal(ask_memory(export), CTL_REGION);
	return answer.region.handle;
}

static int ask_packed(uint32_t memory, uint32_t blocks, uint64_t offset)
{
	struct ctl_region_gpu m = {
		.ns = 1, .blocks_count = blocks, .memory = memory, .offset = offset
	};

	return ask(&m, CTL_REGION_GPU, sizeof(m));
}

union layout {
	struct ctl_region_gpu m;
	uint8_t bytes[sizeof(struct ctl_region_gpu) + 2 * sizeof(struct skvc_abi_gpu_stride)];
};

/* K and V of one layer, each a tensor [blocks, tokens, heads, dim] of its own. */
static union layout layout_message(uint32_t k_memory, uint64_t k_off, uint32_t v_memory,
				   uint64_t v_off)
{
	union layout l = { .m = { .ns = 1, .blocks_count = 4, .strides_count = 2 } };

	l.m.strides[0] =
		(struct skvc_abi_gpu_stride){ k_memory, 0, k_off, SEGMENT_BYTES, 256, 128 };
	l.m.strides[1] =
		(struct skvc_abi_gpu_stride){ v_memory, 0, v_off, SEGMENT_BYTES, 256, 128 };
	return l;
}

static int ask_layout(union layout l)
{
	return ask(&l, CTL_REGION_GPU, sizeof(l));
}

static int ask_event(void)
{
	struct ctl_event_gpu m = { .ipc_event = "event" };

	return ask(&m, CTL_EVENT_GPU, sizeof(m));
}

static int ask_free(uint32_t handle)
{
	struct ctl_free m = { .handle = handle };

	return ask(&m, CTL_REGION_FREE, sizeof(m));
}

static void assert_open(unsigned memories, unsigned regions, unsigned events)
{
	assert_int_equal(gpu.memories_open, memories);
	assert_int_equal(gpu.regions_open, regions);
	assert_int_equal(gpu.events_open, events);
}

/* ---- who may, and when ---- */

static void without_a_gpu(void **state)
{
	(void)state;
	host.gpu = NULL;
	REFUSED(ask_memory(0), -EOPNOTSUPP, NONE);
	says("[gpu] device");
	REFUSED(ask_packed(1, 1, 0), -EOPNOTSUPP, NONE);
	REFUSED(ask_event(), -EOPNOTSUPP, NONE);
	host.gpu = &gpu.device;
}

static void after_the_gpu_failed(void **state)
{
	uint32_t memory, region, event;

	(void)state;
	memory = new_memory(0);
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	region = answer.region.handle;
	assert_int_equal(ask_event(), CTL_REGION);
	event = answer.region.handle;
	gpu.dead = 1;
	REFUSED(ask_memory(0), -EIO, DEVICE_GONE);
	says("restart the daemon");
	REFUSED(ask_packed(memory, 4, 0), -EIO, DEVICE_GONE);
	REFUSED(ask_event(), -EIO, DEVICE_GONE);
	/* What is there can be given back all the same. */
	assert_int_equal(ask_free(region), CTL_OK);
	assert_int_equal(ask_free(memory), CTL_OK);
	assert_int_equal(ask_free(event), CTL_OK);
	assert_open(0, 0, 0);
}

static void not_for_schedulers(void **state)
{
	(void)state;
	hang_up();
	connect_as(1);
	open_ns(2, 16);
	REFUSED(ask_memory(0), -EPERM, ROLE);
	REFUSED(ask_packed(1, 1, 0), -EPERM, ROLE);
	REFUSED(ask_event(), -EPERM, ROLE);
	assert_open(0, 0, 0);
}

/* ---- allocations ---- */

static void memory_of_another_gpu(void **state)
{
	struct ctl_memory_gpu m = memory_message(0, EXPORT_BYTES);

	(void)state;
	m.device_uuid[15] ^= 0xff;
	REFUSED(ask(&m, CTL_MEMORY_GPU, sizeof(m)), -ENODEV, BAD_MEMORY);
	says("GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
	says("GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadae50");
	assert_open(0, 0, 0);
}

static void memory_that_does_not_open(void **state)
{
	static const struct {
		int res;
		uint16_t reason;
	} cases[] = {
		{ -EINVAL, REASON(BAD_MEMORY) },
		{ -EIO, REASON(BAD_MEMORY) },
		{ -ENOMEM, REASON(MEMORY_LIMIT) },
	};
	struct ctl_memory_gpu m = memory_message(0, EXPORT_BYTES + 1);

	(void)state;
	REFUSED(ask(&m, CTL_MEMORY_GPU, sizeof(m)), -ERANGE, BAD_MEMORY);
	says("smaller than claimed");
	m = memory_message(IMPORT_EXPORTS_MAX, EXPORT_BYTES);
	REFUSED(ask(&m, CTL_MEMORY_GPU, sizeof(m)), -EINVAL, BAD_MEMORY);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		gpu.fail_memory = cases[i].res;
		assert_int_equal(ask_memory(0), CTL_ERROR);
		assert_int_equal(answer.error.res, cases[i].res);
		assert_int_equal(answer.error.reason, cases[i].reason);
		says("the test said no");
	}
	/* The handle that was to be is still free. */
	gpu.fail_memory = 0;
	assert_int_equal(new_memory(0), 1);
	gpu.fail_memory = -EINVAL;
	gpu.die = 1;
	REFUSED(ask_memory(0), -EIO, DEVICE_GONE);
	assert_open(1, 0, 0);
}

static void descriptors(void **state)
{
	struct ctl_memory_gpu m = memory_message(0, 65536);
	unsigned before;
	int memfd = memfd_create("gpu", MFD_CLOEXEC), pipe_fds[2];

	(void)state;
	assert_true(memfd >= 0 && ftruncate(memfd, 65536) == 0);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	m.memory_type = CTL_MEMORY_POSIX_FD;
	before = control_rig_open_fds();
	assert_int_equal(ask_fd(&m, CTL_MEMORY_GPU, sizeof(m), memfd), CTL_REGION);
	assert_int_equal(control_rig_fds_left(before), before); /* nothing is left of it */
	assert_open(1, 0, 0);
	/* Some other file: an error of that request. */
	REFUSED(ask_fd(&m, CTL_MEMORY_GPU, sizeof(m), pipe_fds[0]), -EINVAL, BAD_MEMORY);
	m.allocation_bytes++;
	REFUSED(ask_fd(&m, CTL_MEMORY_GPU, sizeof(m), memfd), -ERANGE, BAD_MEMORY);
	host.gpu = NULL;
	REFUSED(ask_fd(&m, CTL_MEMORY_GPU, sizeof(m), memfd), -EOPNOTSUPP, NONE);
	host.gpu = &gpu.device;
	assert_int_equal(control_rig_fds_left(before), before);
	(void)close(memfd);
	(void)close(pipe_fds[0]);
	(void)close(pipe_fds[1]);
}

/* Too few, too many, or of a memory that has none: the session ends, and nothing stays open. */
static void wrong_numbers_of_descriptors(void **state)
{
	static const struct {
		uint32_t memory_type;
		unsigned fds;
	} wrong[] = { { 2, 0 }, { 2, 2 }, { 2, 4 }, { 1, 1 }, { 1, 2 } };
	const int fds[] = { 0, 0, 0, 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct ctl_memory_gpu m = memory_message(0, EXPORT_BYTES);
		unsigned before = control_rig_open_fds();

		m.memory_type = wrong[i].memory_type;
		ctl_msg_init(&m.h, CTL_MEMORY_GPU, sizeof(m), ++seq);
		assert_int_equal(fdpass_send(sock, &m, sizeof(m), fds, wrong[i].fds), 0);
		client_input(client);
		assert_int_equal(take_answer(), CTL_ERROR);
		assert_int_equal(answer.error.res, -EPROTO);
		assert_int_equal(answer.error.reason, REASON(BAD_MESSAGE));
		assert_true(control_rig_fds_left(before) <= before);
		hang_up();
		assert_open(0, 0, 0);
		connect_as(0);
		open_ns(2, 16);
	}
}

static void memory_is_open_while_it_is_held(void **state)
{
	uint32_t memory, first, second;

	(void)state;
	memory = new_memory(0);
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	first = answer.region.handle;
	assert_int_equal(ask_packed(memory, 4, 65536), CTL_REGION);
	second = answer.region.handle;
	assert_open(1, 2, 0);
	assert_int_equal(ask_free(memory), CTL_OK);
	assert_open(1, 2, 0);
	REFUSED(ask_free(memory), -ESTALE, BAD_REGION);
	REFUSED(ask_packed(memory, 1, 0), -EINVAL, BAD_REGION);
	assert_int_equal(ask_free(second), CTL_OK);
	assert_open(1, 1, 0);
	assert_int_equal(ask_free(first), CTL_OK);
	assert_open(0, 0, 0);
	/* The other way around: the handle is the last to hold it. */
	memory = new_memory(1);
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	assert_int_equal(ask_free(answer.region.handle), CTL_OK);
	assert_open(1, 0, 0);
	assert_int_equal(ask_free(memory), CTL_OK);
	assert_open(0, 0, 0);
}

/* ---- regions ---- */

/* Where the first byte of a segment's block is, as the device will find it. */
static const uint8_t *address(const struct region *r, uint32_t segment, uint32_t block)
{
	return r->dev.base + r->dev.stride[segment].off + block * r->dev.block_stride[segment];
}

static void packed_regions(void **state)
{
	uint32_t memory = new_memory(2);
	const struct region *r;

	(void)state;
	assert_int_equal(ask_packed(memory, EXPORT_BYTES / BLOCK_BYTES - 1, 4096), CTL_REGION);
	r = client->regions[answer.region.handle];
	assert_ptr_equal(r->device, &gpu.device);
	assert_ptr_equal(r->ns, client->ns[1]);
	assert_null(r->event);
	assert_int_equal(r->dev.bytes, EXPORT_BYTES);
	assert_ptr_equal(address(r, 0, 0), gpu.exported[2].base + 4096);
	assert_ptr_equal(address(r, 1, 3),
			 gpu.exported[2].base + 4096 + 3 * BLOCK_BYTES + SEGMENT_BYTES);
	assert_int_equal(r->dev.stride[1].token_stride, 256);
	assert_int_equal(r->dev.stride[1].head_stride, 128);
	REFUSED(ask_packed(memory, EXPORT_BYTES / BLOCK_BYTES, 4096), -ERANGE, BAD_LAYOUT);
	REFUSED(ask_packed(memory, UINT32_MAX, 0), -ERANGE, BAD_LAYOUT);
	REFUSED(ask_packed(memory, 1, EXPORT_BYTES), -ERANGE, BAD_LAYOUT);
	REFUSED(ask_packed(memory, 1, UINT64_MAX), -ERANGE, BAD_LAYOUT);
	REFUSED(ask_packed(memory, 1, 1), -EINVAL, BAD_LAYOUT); /* half a bf16 */
	assert_open(1, 1, 0);
}

static void regions_over_several_allocations(void **state)
{
	uint32_t a = new_memory(0), b = new_memory(1);
	const struct region *r;
	union layout l;

	(void)state;
	l = layout_message(a, 512, b, EXPORT_BYTES - 4 * SEGMENT_BYTES);
	assert_int_equal(ask_layout(l), CTL_REGION);
	r = client->regions[answer.region.handle];
	assert_ptr_equal(address(r, 0, 0), gpu.exported[0].base + 512);
	assert_ptr_equal(address(r, 1, 0), gpu.exported[1].base + EXPORT_BYTES - 4 * SEGMENT_BYTES);
	assert_ptr_equal(address(r, 1, 3), gpu.exported[1].base + EXPORT_BYTES - SEGMENT_BYTES);
	assert_open(2, 1, 0);
	/* Both handles go; the region holds both allocations. */
	assert_int_equal(ask_free(a), CTL_OK);
	assert_int_equal(ask_free(b), CTL_OK);
	assert_open(2, 1, 0);
	/* And the other way around, so that either is the lower one. */
	a = new_memory(0);
	b = new_memory(1);
	assert_int_equal(ask_layout(layout_message(b, 512, a, 1024)), CTL_REGION);
	r = client->regions[answer.region.handle];
	assert_ptr_equal(address(r, 0, 1), gpu.exported[1].base + 512 + SEGMENT_BYTES);
	assert_ptr_equal(address(r, 1, 1), gpu.exported[0].base + 1024 + SEGMENT_BYTES);
}

static void layouts_that_do_not_fit(void **state)
{
	uint32_t a = new_memory(0), b = new_memory(1), a_again = new_memory(0);
	union layout l;

	(void)state;
	/* One byte outside its own allocation, though the address space goes on. */
	REFUSED(ask_layout(layout_message(a, 0, b, EXPORT_BYTES - 4 * SEGMENT_BYTES + 2)), -ERANGE,
		BAD_LAYOUT);
	REFUSED(ask_layout(layout_message(a, EXPORT_BYTES, b, 0)), -ERANGE, BAD_LAYOUT);
	REFUSED(ask_layout(layout_message(a, UINT64_MAX - 4095, b, 0)), -ERANGE, BAD_LAYOUT);
	/* K over V: in one allocation, and in one that goes by two handles. */
	REFUSED(ask_layout(layout_message(a, 0, a, 4 * SEGMENT_BYTES - 2)), -EINVAL, BAD_LAYOUT);
	REFUSED(ask_layout(layout_message(a, 0, a_again, 4 * SEGMENT_BYTES - 2)), -EINVAL,
		BAD_LAYOUT);
	REFUSED(ask_layout(layout_message(a, 0, a_again, 0)), -EINVAL, BAD_LAYOUT);
	assert_int_equal(ask_layout(layout_message(a, 0, a_again, 4 * SEGMENT_BYTES)), CTL_REGION);
	/* Odd bytes. */
	REFUSED(ask_layout(layout_message(a, 1, b, 0)), -EINVAL, BAD_LAYOUT);
	l = layout_message(a, 0, b, 0);
	l.m.strides[0].token_stride = 257;
	REFUSED(ask_layout(l), -EINVAL, BAD_LAYOUT);
	l = layout_message(a, 0, b, 0);
	l.m.strides[1].block_stride = 0;
	REFUSED(ask_layout(l), -EINVAL, BAD_LAYOUT);
	l = layout_message(a, 0, b, 0);
	l.m.strides[1].head_stride = UINT64_MAX - 1;
	REFUSED(ask_layout(l), -ERANGE, BAD_LAYOUT);
	/* Too few strides, of another namespace, of none. */
	l = layout_message(a, 0, b, 0);
	l.m.strides_count = 1;
	REFUSED(ask(&l, CTL_REGION_GPU, sizeof(l) - sizeof(l.m.strides[0])), -EINVAL, BAD_LAYOUT);
	l = layout_message(a, 0, b, 0);
	l.m.ns = 2;
	REFUSED(ask_layout(l), -EINVAL, BAD_NAMESPACE);
	l.m.ns = UINT32_MAX;
	REFUSED(ask_layout(l), -EINVAL, BAD_NAMESPACE);
	gpu.facts.block_bytes_max = BLOCK_BYTES - 1;
	REFUSED(ask_packed(a, 1, 0), -EFBIG, TOO_LARGE);
	assert_open(3, 1, 0);
}

static void handles_of_another_kind(void **state)
{
	uint32_t memory = new_memory(0), event, region;

	(void)state;
	assert_int_equal(ask_event(), CTL_REGION);
	event = answer.region.handle;
	assert_int_equal(ask_packed(memory, 1, 0), CTL_REGION);
	region = answer.region.handle;
	/* One number space: no two of them are the same. */
	assert_true(memory != event && event != region && region != memory);
	REFUSED(ask_packed(event, 1, 0), -EINVAL, BAD_REGION);
	REFUSED(ask_packed(region, 1, 0), -EINVAL, BAD_REGION);
	REFUSED(ask_packed(region + 1, 1, 0), -EINVAL, BAD_REGION);
	REFUSED(ask_packed(SESSION_REGIONS_MAX + 1, 1, 0), -EINVAL, BAD_REGION);
	REFUSED(ask_packed(UINT32_MAX, 1, 0), -EINVAL, BAD_REGION);
	REFUSED(ask_layout(layout_message(memory, 0, event, 0)), -EINVAL, BAD_REGION);
	REFUSED(ask_free(region + 1), -ESTALE, BAD_REGION);
	assert_open(1, 1, 1);
}

static void a_layout_that_the_device_refuses(void **state)
{
	uint32_t memory = new_memory(0);

	(void)state;
	gpu.fail_region = -EINVAL;
	REFUSED(ask_packed(memory, 4, 0), -EINVAL, BAD_MEMORY);
	gpu.fail_region = -ENOMEM;
	REFUSED(ask_packed(memory, 4, 0), -ENOMEM, MEMORY_LIMIT);
	gpu.die = 1;
	REFUSED(ask_packed(memory, 4, 0), -EIO, DEVICE_GONE);
	assert_open(1, 0, 0);
	/* Nothing of the three holds it. */
	assert_int_equal(ask_free(memory), CTL_OK);
	assert_open(0, 0, 0);
}

/* ---- events ---- */

static void events(void **state)
{
	const struct region *r;
	uint32_t event;

	(void)state;
	assert_int_equal(ask_event(), CTL_REGION);
	event = answer.region.handle;
	r = client->regions[event];
	assert_string_equal(gpu.event_handle, "event");
	assert_non_null(r->event);
	assert_null(r->ns);
	assert_ptr_equal(r->device, &gpu.device);
	assert_open(0, 0, 1);
	gpu.fail_event = -EINVAL;
	REFUSED(ask_event(), -EINVAL, BAD_MEMORY);
	says("no such event");
	gpu.die = 1;
	REFUSED(ask_event(), -EIO, DEVICE_GONE);
	assert_int_equal(ask_free(event), CTL_OK);
	assert_open(0, 0, 0);
}

/* ---- the end ---- */

static void nothing_is_closed_before_the_lane_says_so(void **state)
{
	struct ctl_free m = { 0 };
	uint32_t memory = new_memory(0), event;

	(void)state;
	assert_int_equal(ask_event(), CTL_REGION);
	event = answer.region.handle;
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	m.handle = answer.region.handle;
	send_packet(&m, CTL_REGION_FREE, sizeof(m), -1);
	assert_int_equal(client->state, CLIENT_ASKING);
	assert_open(1, 1, 1);
	assert_int_equal(take_answer(), CTL_OK);
	assert_open(1, 0, 1);
	m.handle = event;
	send_packet(&m, CTL_REGION_FREE, sizeof(m), -1);
	assert_open(1, 0, 1);
	assert_int_equal(take_answer(), CTL_OK);
	assert_open(1, 0, 0);
	/* A client that dies: all of it at once, but not before the lane has drained. */
	assert_int_equal(ask_event(), CTL_REGION);
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	assert_int_equal(ask_free(memory), CTL_OK);
	(void)close(sock);
	sock = -1;
	client_input(client);
	assert_int_equal(client->state, CLIENT_ENDING);
	assert_open(1, 1, 1);
	wait_over();
	assert_open(0, 0, 0);
}

static void nobody_was_told(void)
{
	assert_false(is_readable());
}

/* Who is told that it may free what it exported finds it closed. */
static void closed_before_the_client_hears_of_it(void **state)
{
	struct ctl_header bye;
	uint32_t memory = new_memory(0);

	(void)state;
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	assert_int_equal(ask_free(memory), CTL_OK);
	gpu.on_close = nobody_was_told;
	assert_int_equal(ask_free(memory + 1), CTL_OK);
	assert_open(0, 0, 0);
	gpu.on_close = NULL;
	memory = new_memory(0);
	assert_int_equal(ask_packed(memory, 4, 0), CTL_REGION);
	gpu.on_close = nobody_was_told;
	assert_int_equal(ask(&bye, CTL_BYE, sizeof(bye)), CTL_OK);
	assert_open(0, 0, 0);
}

static void death_in_the_middle(void **state)
{
	struct ctl_region_gpu m = { .ns = 1, .blocks_count = 4, .memory = new_memory(0) };
	struct ctl_event_gpu e = { 0 };

	(void)state;
	send_packet(&m, CTL_REGION_GPU, sizeof(m), -1);
	assert_int_equal(client->state, CLIENT_ASKING);
	client_gone(client);
	assert_open(1, 1, 0);
	wait_over();
	assert_open(0, 0, 0);
	hang_up();
	connect_as(0);
	send_packet(&e, CTL_EVENT_GPU, sizeof(e), -1);
	client_gone(client);
	assert_open(0, 0, 1);
	wait_over();
	assert_open(0, 0, 0);
}

/* ---- limits ---- */

static void as_many_handles_as_a_session_has(void **state)
{
	uint32_t last = 0;

	(void)state;
	for (unsigned i = 0; i < SESSION_REGIONS_MAX; i++)
		last = new_memory(0);
	assert_int_equal(last, SESSION_REGIONS_MAX);
	REFUSED(ask_event(), -EDQUOT, MEMORY_LIMIT);
	REFUSED(ask_packed(1, 1, 0), -EDQUOT, MEMORY_LIMIT);
	REFUSED(ask_memory(0), -EDQUOT, MEMORY_LIMIT);
	assert_open(SESSION_REGIONS_MAX, 0, 0);
	assert_int_equal(ask_free(17), CTL_OK);
	assert_int_equal(ask_packed(16, 1, 0), CTL_REGION);
	assert_int_equal(answer.region.handle, 17);
}

/* Regions that hold allocations without a handle do not make room for more of these. */
static void allocations_without_handles_count(void **state)
{
	uint32_t a, b;

	(void)state;
	for (unsigned i = 0; i < SESSION_REGIONS_MAX / 2; i++) {
		a = new_memory(0);
		b = new_memory(1);
		assert_int_equal(ask_layout(layout_message(a, 0, b, 0)), CTL_REGION);
		assert_int_equal(ask_free(a), CTL_OK);
		assert_int_equal(ask_free(b), CTL_OK);
	}
	assert_open(SESSION_REGIONS_MAX, SESSION_REGIONS_MAX / 2, 0);
	REFUSED(ask_memory(0), -EDQUOT, MEMORY_LIMIT);
	says("allocations");
}

static void descriptions_are_bounded(void **state)
{
	struct ctl_region_gpu m = { .ns = 1, .blocks_count = 1 };

	(void)state;
	hang_up();
	connect_as(0);
	open_ns(CTL_SEGMENTS_MAX, 1);
	m.memory = new_memory(0);
	for (unsigned i = 0; i < SESSION_STRIDES_MAX / CTL_SEGMENTS_MAX; i++)
		assert_int_equal(ask(&m, CTL_REGION_GPU, sizeof(m)), CTL_REGION);
	REFUSED(ask(&m, CTL_REGION_GPU, sizeof(m)), -EDQUOT, MEMORY_LIMIT);
	says("segments");
	assert_int_equal(ask_free(2), CTL_OK);
	assert_int_equal(ask(&m, CTL_REGION_GPU, sizeof(m)), CTL_REGION);
	assert_int_equal(answer.region.handle, 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(without_a_gpu),
		TEST(after_the_gpu_failed),
		TEST(not_for_schedulers),
		TEST(memory_of_another_gpu),
		TEST(memory_that_does_not_open),
		TEST(descriptors),
		TEST(wrong_numbers_of_descriptors),
		TEST(memory_is_open_while_it_is_held),
		TEST(packed_regions),
		TEST(regions_over_several_allocations),
		TEST(layouts_that_do_not_fit),
		TEST(handles_of_another_kind),
		TEST(a_layout_that_the_device_refuses),
		TEST(events),
		TEST(nothing_is_closed_before_the_lane_says_so),
		TEST(closed_before_the_client_hears_of_it),
		TEST(death_in_the_middle),
		TEST(as_many_handles_as_a_session_has),
		TEST(allocations_without_handles_count),
		TEST(descriptions_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
