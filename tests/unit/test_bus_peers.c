/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_bus_peers.c - who asks on the bus socket: strangers, more of them than there are places, and those who send
 * what they should not, do not read, or say nothing.
 */
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <systemd/sd-bus.h>

#include "tests/lib/control_rig.h"
#include "tests/lib/raw_client.h"
#include "tools/skvcctl.h"

#define NAME "org.skvcd.Skvcd1"
#define PATH "/org/skvcd/Skvcd1"

/* As org.skvcd.Skvcd1(5) has them. */
#define PLACES 16u
#define PLACES_OF_USER 4u
#define WAITING 32u
#define WAITING_OF_USER 4u
#define BUSY "ERROR no place is free\r\n"

static struct control_rig rig;
static struct skvcctl_source source;
static char err[SKVCCTL_ERR_BYTES];

static int setup(void **state)
{
	(void)state;
	control_rig_start(&rig, NULL);
	source = (struct skvcctl_source){ .path = rig.config.bus_socket };
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(control_rig_stop(&rig), 0);
	return 0;
}

/* Root, or the daemon's own user. */
static enum skvcctl_exit ask(void)
{
	return skvcctl_drain(&source, false, err, sizeof(err));
}

/* ---- who may ask ---- */

/* Who is neither root nor of the daemon's group may not even look, however wide the socket is. */
static void test_strangers_are_not_answered(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		print_message("not root: cannot become another user\n");
		skip();
	}
	assert_int_equal(chmod(rig.dir, 0711), 0);
	assert_int_equal(chmod(rig.config.bus_socket, 0666), 0);
	pid = fork();
	if (!pid) {
		struct skvcctl_picture p = { 0 };
		bool good;

		if (setgroups(0, NULL) < 0 || setresgid(65534, 65534, 65534) < 0 ||
		    setresuid(65534, 65534, 65534) < 0)
			_exit(2);
		good = skvcctl_fetch(&source, SKVCCTL_GET_STATS, &p, err, sizeof(err)) ==
			       SKVCCTL_FAILURE &&
		       strstr(err, "not permitted");
		if (!good)
			(void)fprintf(stderr, "as a stranger: %s\n", err);
		_exit(good ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Of this thread alone, as the kernel has it: the daemon's go on as they are. */
static void become(uid_t uid)
{
	assert_int_equal(syscall(SYS_setresuid, -1, 0, -1), 0);
	assert_int_equal(syscall(SYS_setresuid, -1, uid, -1), 0);
}

static enum skvcctl_exit look_as(uid_t uid)
{
	struct skvcctl_picture p = { 0 };
	enum skvcctl_exit e;

	become(uid);
	e = skvcctl_fetch(&source, SKVCCTL_GET_TENANTS, &p, err, sizeof(err));
	become(0);
	skvcctl_picture_deinit(&p);
	return e;
}

/* ---- places ---- */

static bool pings(sd_bus *bus)
{
	return sd_bus_call_method(bus, NULL, PATH, NAME, "Ping", NULL, NULL, NULL) >= 0;
}

/* Something was said to it, or it was hung up on. */
static bool is_told(int sock, int limit_ms)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };

	return poll(&p, 1, limit_ms) > 0;
}

static void assert_told_busy(int sock)
{
	char said[64] = "";

	assert_true(is_told(sock, 20000));
	assert_true(recv(sock, said, sizeof(said) - 1, 0) > 0);
	assert_string_equal(said, BUSY);
	assert_int_equal(recv(sock, said, sizeof(said), 0), 0);
}

static void connect_all(int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		fds[i] = control_rig_bus_socket(&rig);
}

static void close_all(const int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		(void)close(fds[i]);
}

/* In the order they came, and as soon as a place is free. */
static void test_who_finds_no_place_waits(void **state)
{
	int fds[PLACES];
	sd_bus *first, *second;

	(void)state;
	connect_all(fds, PLACES);
	first = control_rig_bus(&rig);
	second = control_rig_bus(&rig);
	assert_false(is_told(sd_bus_get_fd(first), 100));
	(void)close(fds[0]);
	assert_true(pings(first));
	assert_false(is_told(sd_bus_get_fd(second), 100));
	(void)sd_bus_flush_close_unref(first);
	assert_true(pings(second));
	(void)sd_bus_flush_close_unref(second);
	close_all(fds + 1, PLACES - 1);
	assert_int_equal(ask(), SKVCCTL_OK);
}

/* Nor do more than there is room for. */
static void test_nobody_waits_for_long(void **state)
{
	unsigned before = control_rig_open_fds();
	int places[PLACES], waiting[WAITING];

	(void)state;
	connect_all(places, PLACES);
	connect_all(waiting, WAITING);
	assert_int_equal(ask(), SKVCCTL_FAILURE);
	assert_non_null(strstr(err, "busy"));
	assert_false(is_told(waiting[0], 0)); /* who came before still waits */
	for (unsigned i = 0; i < WAITING; i++)
		assert_told_busy(waiting[i]);
	for (unsigned i = 0; i < PLACES; i++)
		assert_false(is_told(places[i], 0));
	close_all(places, PLACES);
	close_all(waiting, WAITING);
	assert_int_equal(ask(), SKVCCTL_OK);
	assert_true(control_rig_fds_left(before) <= before); /* others of before may be gone, too */
}

static void open_to_others(void)
{
	if (geteuid() != 0) {
		print_message("not root: cannot become another user\n");
		skip();
	}
	assert_int_equal(chmod(rig.dir, 0711), 0);
	assert_int_equal(chmod(rig.config.bus_socket, 0666), 0);
}

/* Neither who has his places, nor who waits for one, takes anything from others. */
static void test_one_user_leaves_places_to_others(void **state)
{
	int fds[PLACES_OF_USER + WAITING_OF_USER], more;

	(void)state;
	open_to_others();
	become(70001);
	connect_all(fds, PLACES_OF_USER + WAITING_OF_USER);
	more = control_rig_bus_socket(&rig);
	become(0);
	assert_told_busy(more);
	assert_false(is_told(fds[PLACES_OF_USER], 0));
	assert_int_equal(look_as(70002), SKVCCTL_OK);
	assert_int_equal(ask(), SKVCCTL_OK);
	assert_false(is_told(fds[PLACES_OF_USER], 0));
	close_all(fds, PLACES_OF_USER + WAITING_OF_USER);
	(void)close(more);
	assert_int_equal(look_as(70001), SKVCCTL_OK);
}

/* Nor do many users take all from root. */
static void test_users_leave_places_to_root(void **state)
{
	int fds[7 * 8];

	(void)state;
	open_to_others();
	for (unsigned i = 0; i < 7; i++) {
		become(70001 + i);
		connect_all(fds + i * 8, 8);
	}
	become(0);
	assert_int_equal(ask(), SKVCCTL_OK);
	close_all(fds, 7 * 8);
	assert_int_equal(look_as(70009), SKVCCTL_OK);
}

/* A place is free a moment after who had it knows that it is over. */
static void test_one_after_the_other(void **state)
{
	(void)state;
	open_to_others();
	for (unsigned i = 0; i < 200; i++)
		if (look_as(70001) != SKVCCTL_OK)
			fail_msg("the %uth time: %s", i, err);
}

/* ---- what is sent, and not read ---- */

/* Who asks on and on and does not read what he is told is dropped, and his place is the next one's. */
static void test_who_does_not_read_has_no_place(void **state)
{
	(void)state;
	(void)alarm(60);
	for (unsigned i = 0; i < 17; i++) { /* one more than there are places */
		sd_bus *bus = control_rig_bus(&rig);
		int r = 0;

		assert_true(pings(bus));
		while (r >= 0) {
			sd_bus_message *ask = NULL;
			uint64_t cookie; /* without it no answer is sent */

			assert_true(sd_bus_message_new_method_call(bus, &ask, NULL, PATH, NAME,
								   "GetMetrics") >= 0);
			r = sd_bus_send(bus, ask, &cookie);
			sd_bus_message_unref(ask);
			if (r >= 0)
				r = sd_bus_flush(bus);
		}
		(void)sd_bus_close_unref(bus);
	}
	(void)alarm(0);
	assert_int_equal(ask(), SKVCCTL_OK);
}

static ssize_t send_with_fd(int sock, char *bytes, size_t count, int fd)
{
	struct iovec iov = { .iov_base = bytes, .iov_len = count };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .align = { .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_RIGHTS,
				 .cmsg_len = CMSG_LEN(sizeof(int)) } };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };

	memcpy(CMSG_DATA(&control.align), &fd, sizeof(int));
	return sendmsg(sock, &msg, MSG_NOSIGNAL);
}

/* A connection that brought a lingering socket, whose last close() is not this process's. */
static int connect_with_lingering_fd(int *ret_peer)
{
	char bytes[] = "\0AUTH EXTERNAL\r\n", go;
	int sock = control_rig_bus_socket(&rig), fd = raw_lingering_socket(ret_peer), gate[2],
	    status;
	pid_t pid;

	assert_true(fd >= 0);
	assert_int_equal(pipe(gate), 0);
	pid = fork();
	if (!pid) /* who exits does not linger */
		_exit(read(gate[0], &go, 1) != 1 || send_with_fd(sock, bytes, 16, fd) != 16);
	(void)close(fd);
	assert_int_equal(write(gate[1], "", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)close(gate[0]);
	(void)close(gate[1]);
	return sock;
}

/* In what is read, and in what nobody reads any more. */
static void test_descriptors_that_take_long_to_close(void **state)
{
	int peers[2], bus[2];

	(void)state;
	for (unsigned i = 0; i < 2; i++)
		bus[i] = connect_with_lingering_fd(&peers[i]);
	(void)close(bus[1]);
	(void)usleep(50000);
	assert_int_equal(ask(), SKVCCTL_OK);
	(void)close(bus[0]);
	assert_int_equal(ask(), SKVCCTL_OK);
	for (unsigned i = 0; i < 2; i++)
		(void)close(peers[i]);
}

/* It said nothing yet, or waits for a place; nor is the end waited for what it has to hear. */
static void test_silent_peers_do_not_hold_up_the_end(void **state)
{
	unsigned before = control_rig_open_fds();
	int fds[PLACES + 2];

	(void)state;
	(void)setup(NULL);
	connect_all(fds, PLACES - 1);
	assert_int_equal(ask(), SKVCCTL_OK); /* all are taken */
	connect_all(fds + PLACES - 1, 3);
	assert_false(is_told(fds[PLACES + 1], 100)); /* and these, at least by one who waits */
	(void)alarm(20);
	(void)teardown(NULL);
	(void)alarm(0);
	for (unsigned i = 0; i < PLACES + 2; i++)
		assert_true(is_told(fds[i], 20000));
	close_all(fds, PLACES + 2);
	assert_true(control_rig_fds_left(before) <= before); /* others of before may be gone, too */
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;
	clockid_t clock;

	assert_int_equal(pthread_getcpuclockid(rig.thread, &clock), 0);
	assert_int_equal(clock_gettime(clock, &ts), 0);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* A connection that cannot be taken stays readable: it waits, and nobody spins. */
static void test_no_descriptor_left(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct rlimit old, none;
	uint64_t before_ns, used_ns;
	sd_bus *bus = NULL;
	int fd;

	(void)state;
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", rig.config.bus_socket);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 3; /* as low as stdio: what is open stays open */
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	before_ns = cpu_ns();
	assert_int_equal(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	(void)usleep(300000);
	used_ns = cpu_ns() - before_ns;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	if (used_ns > 100000000)
		fail_msg("%llu ms of 300 were spent on it", (unsigned long long)used_ns / 1000000);
	assert_true(sd_bus_new(&bus) >= 0 && sd_bus_set_fd(bus, fd, fd) >= 0 &&
		    sd_bus_start(bus) >= 0);
	assert_true(sd_bus_call_method(bus, NULL, PATH, NAME, "Ping", NULL, NULL, NULL) >= 0);
	(void)sd_bus_flush_close_unref(bus);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_strangers_are_not_answered),
		TEST(test_who_finds_no_place_waits),
		TEST(test_nobody_waits_for_long),
		TEST(test_one_user_leaves_places_to_others),
		TEST(test_users_leave_places_to_root),
		TEST(test_one_after_the_other),
		TEST(test_who_does_not_read_has_no_place),
		TEST(test_descriptors_that_take_long_to_close),
		TEST(test_no_descriptor_left),
		cmocka_unit_test(test_silent_peers_do_not_hold_up_the_end),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
