# SPDX-License-Identifier: Apache-2.0
#
# The one makefile.  Each room lists its sources in its objs.mk and nothing else; everything that is
# built lies under build/<flavour>/.  build/bin and build/lib are the default flavour's.
#
#   make                programs and libraries
#   make demo           a real model's KV cache through skvcd and back
#   make check          all tests, all flavours, lint (what CI runs); check-fast: one flavour, no lint
#   make torture        the model test, and those of what is found again on NVMe, long (TORTURE_SECONDS= each)
#   make lint           formatting, static analysis, the rules of the house
#   make fuzz           libFuzzer over every target (FUZZ_SECONDS= each, FUZZ= one)
#   make plots KV= CALIBRATE=  a picture of README: ratio against cost and speed
#   make plots TRACE=   another: hit ratio against capacity
#   make plots PROMETHEUS=URL  the dashboard's panels, from a Prometheus that scrapes a skvcd
#   make asan, tsan     sanitizer flavours; the same as SAN=asan, SAN=tsan
#   make deps           install what is missing (as root), or say what it is
#   make install DESTDIR= prefix= libdir= ...
#   make deb            Debian packages of HEAD, in build/deb
#
#   CC=clang  O=0  SAN=asan|tsan  WERROR=1  V=1  BUILD=folder
#   CUDA=auto|0|1  CUDA_HOME=folder  CUDA_ARCHS='90 100'

MAKEFLAGS += --no-builtin-rules --no-builtin-variables
SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

VERSION := 0.1.0
SOVERSION := 0

# ---- flavour ------------------------------------------------------------------------------------

O ?= 2
SAN ?=
# The sanitizers' run-time libraries of clang are the ones that `deps` installs.
ifneq ($(filter default undefined,$(origin CC)),)
CC := $(if $(SAN),clang,gcc)
endif
ifneq ($(filter default undefined,$(origin AR)),)
AR := ar
endif
V ?=
WERROR ?=
FUZZ_SECONDS ?= 60
TORTURE_SECONDS ?= 600
JOBS ?= $(shell nproc)

ifneq ($(filter-out asan tsan fuzz,$(SAN)),)
$(error SAN=$(SAN) is not one of asan, tsan, fuzz)
endif
ifeq ($(SAN),fuzz)
override CC := clang
endif

# A name for everything that changes the objects, so that flavours never mix.
DEFAULT_CC := $(if $(SAN),clang,gcc)
FLAVOUR := $(if $(SAN),$(SAN),release)$(if $(filter-out $(DEFAULT_CC),$(CC)),-$(notdir $(CC)))
FLAVOUR := $(FLAVOUR)$(if $(filter-out 2,$(O)),-O$(O))
BUILD ?= build
B := $(BUILD)/$(FLAVOUR)

# As many jobs as cores, unless told otherwise; a make below this one shares its jobs.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(JOBS)
endif
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')

# ---- flags --------------------------------------------------------------------------------------

PKGS := liburing numa libzstd libsystemd libmicrohttpd libxxhash libsodium libcjson inih openblas lapacke
# Expanded at first use, in a recipe: on a fresh machine `deps` has to run before pkg-config can answer.
pkg = $(shell pkg-config $(1) 2>/dev/null)
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(call pkg,--cflags $(PKGS)))$(PKG_CFLAGS)
DAEMON_LIBS = $(eval DAEMON_LIBS := $$(call pkg,--libs $(PKGS)) -lpthread -lm)$(DAEMON_LIBS)
TOOLS_LIBS = $(eval TOOLS_LIBS := $$(call pkg,--libs libzstd libxxhash libsodium numa libsystemd libcjson ncursesw openblas lapacke) -lpthread -lm)$(TOOLS_LIBS)
TEST_LIBS = $(eval TEST_LIBS := $$(call pkg,--libs cmocka $(PKGS)) -lpthread -lm)$(TEST_LIBS)

WARN := -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wundef \
	-Wpointer-arith -Wwrite-strings $(if $(WERROR),-Werror)
CPPFLAGS_ALL = -I. -D_GNU_SOURCE -DSKVCD_VERSION='"$(VERSION)"' $(PKG_CFLAGS) $(CPPFLAGS)
# Packets and records are byte buffers that are looked at as structs: no type-based aliasing.
CFLAGS_ALL = -std=gnu17 -O$(O) -g -ffunction-sections -fdata-sections -fno-strict-aliasing \
	-fno-semantic-interposition -ffile-prefix-map=$(CURDIR)=. $(WARN) $(SAN_CFLAGS) $(CFLAGS)
LDFLAGS_ALL = -Wl,--gc-sections -Wl,--as-needed -Wl,-z,relro -Wl,-z,now $(SAN_LDFLAGS) $(LDFLAGS)

ifeq ($(SAN),)
SAN_CFLAGS := -fstack-protector-strong $(if $(filter-out 0,$(O)),-D_FORTIFY_SOURCE=2)
SAN_LDFLAGS :=
else
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SAN_tsan := -fsanitize=thread
SAN_fuzz := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined
SAN_CFLAGS := $(SAN_$(SAN)) -fno-omit-frame-pointer -DSKVCD_SAN=1
SAN_LDFLAGS := $(SAN_$(SAN))
endif

ifneq ($(filter x86_64%,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)),)
ISA_avx2 := -mavx2 -mbmi -mbmi2 -mfma -mlzcnt -mpopcnt
ISA_avx512 := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd -mavx512vbmi \
	-mavx512vbmi2 -mavx512bitalg -mavx512vpopcntdq -mavx512vnni
# gcc makes a constant again at each use, in a general register, rather than load it: a tenth of the
# residual coder's time.
ISA_tune := $(if $(findstring clang,$(CC)),,-mtune-ctrl=^inter_unit_moves_to_vec)
endif

# ---- CUDA: the device in a shared object of its own, when there is a compiler for it ---------------

CUDA ?= auto
CUDA_HOME ?= $(firstword $(patsubst %/bin/nvcc,%,$(shell command -v nvcc 2>/dev/null)) /usr/local/cuda)
CUDA_ARCHS ?= 90a
NVCC ?= $(CUDA_HOME)/bin/nvcc
ifneq ($(filter-out auto 0 1,$(CUDA)),)
$(error CUDA=$(CUDA) is not one of auto, 0, 1)
endif
# The sanitizers know nothing of what the driver maps.
ifneq ($(SAN),)
CUDA_WHY_NOT := SAN=$(SAN)
else ifeq ($(CUDA),0)
CUDA_WHY_NOT := CUDA=0
else ifeq ($(wildcard $(NVCC)),)
CUDA_WHY_NOT := there is no $(NVCC)
else ifeq ($(wildcard gpu/codec/cuda_codec.cu),)
CUDA_WHY_NOT := no kernels in this tree
endif
ifeq ($(CUDA)$(SAN),1)
$(if $(CUDA_WHY_NOT),$(error CUDA=1, but $(CUDA_WHY_NOT)))
endif
# Its host code has tests on any machine with the headers, over a runtime that is not one.
CUDA_HEADERS := $(if $(filter 0,$(CUDA)),,$(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h))
CUDA_SO := $(B)/lib/skvcd/libskvcd-cuda.so
CUDA_LIBS := $(if $(CUDA_WHY_NOT),,$(CUDA_SO))
CUDA_STATIC = $(firstword $(wildcard $(addsuffix /libcudart_static.a,$(CUDA_HOME)/lib64 \
	$(CUDA_HOME)/lib $(CUDA_HOME)/targets/x86_64-linux/lib $(CUDA_HOME)/targets/sbsa-linux/lib)))
NVCC_FLAGS = -std=c++17 -O3 -lineinfo -ccbin g++ -I. $(filter -I%,$(PKG_CFLAGS)) -Xcompiler -fPIC,-g,-ffile-prefix-map=$(CURDIR)=. \
	$(if $(WERROR),-Werror all-warnings) \
	$(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a)$(comma)code=sm_$(a)) $(NVCCFLAGS)
comma := ,

# ---- where things are installed -----------------------------------------------------------------

prefix ?= /usr/local
bindir ?= $(prefix)/bin
sbindir ?= $(prefix)/sbin
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include
mandir ?= $(prefix)/share/man
sysconfdir ?= /etc
unitdir ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
catalogdir ?= $(prefix)/lib/systemd/catalog
dbuspolicydir ?= $(prefix)/share/dbus-1/system.d

# ---- sources ------------------------------------------------------------------------------------

-include ipc/objs.mk client-lib/objs.mk gpu/objs.mk daemon/objs.mk tools/objs.mk tests/objs.mk

TOOL_MAINS := tools/skvcctl.c tools/skvc_bench.c tools/skvc_demo.c tools/skvc_kvdump.c
MAINS := daemon/main.c $(TOOL_MAINS)
GPU_ALL_SRCS := $(sort $(GPU_SRCS) $(GPU_AVX2_SRCS) $(GPU_AVX512_SRCS))
TOOLS_ALL_SRCS := $(sort $(SKVCCTL_SRCS) $(SKVC_BENCH_SRCS) $(SKVC_DEMO_SRCS) $(SKVC_KVDUMP_SRCS))

obj = $(patsubst %.c,$(B)/obj/%.o,$(sort $(1)))
IPC_OBJS := $(call obj,$(IPC_SRCS))
CLIENT_OBJS := $(call obj,$(CLIENT_SRCS))
GPU_OBJS := $(call obj,$(GPU_ALL_SRCS))
DAEMON_OBJS := $(call obj,$(DAEMON_SRCS))
TOOLS_OBJS := $(call obj,$(TOOLS_ALL_SRCS))
TESTLIB_OBJS := $(call obj,$(TESTLIB_SRCS))

UNIT_SRCS := $(sort $(filter-out $(if $(CUDA_HEADERS),,tests/unit/test_cuda_%),$(wildcard tests/unit/test_*.c)))
E2E_SRCS := $(sort $(wildcard tests/e2e/test_*.c))
MODEL_SRCS := $(sort $(wildcard tests/model/model_*.c))
FUZZ_SRCS := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_SRCS := $(sort $(wildcard tests/bench/bench_*.c))
# Two link the kernels themselves.
GPU_TEST_SRCS := $(sort $(filter-out $(if $(CUDA_LIBS),,tests/gpu/test_gpu_model%),$(wildcard tests/gpu/test_*.c)))
TEST_SRCS := $(UNIT_SRCS) $(E2E_SRCS) $(MODEL_SRCS) $(FUZZ_SRCS) $(BENCH_SRCS) $(GPU_TEST_SRCS)
test_bin = $(patsubst tests/%.c,$(B)/tests/%,$(1))
UNIT_BINS := $(call test_bin,$(UNIT_SRCS))
E2E_BINS := $(call test_bin,$(E2E_SRCS))
MODEL_BINS := $(call test_bin,$(MODEL_SRCS))
BENCH_BINS := $(call test_bin,$(BENCH_SRCS))
GPU_BINS := $(call test_bin,$(GPU_TEST_SRCS))
# fuzz_x.c is a libFuzzer program in the fuzz flavour, and replays its corpus in all others.
FUZZ_BINS := $(call test_bin,$(FUZZ_SRCS))

# A program is built when its main file is there.
PROGRAMS := $(sort $(if $(wildcard daemon/main.c),$(if $(DAEMON_SRCS),skvcd)) \
	$(if $(wildcard tools/skvcctl.c),$(if $(SKVCCTL_SRCS),skvcctl)) \
	$(if $(wildcard tools/skvc_bench.c),$(if $(SKVC_BENCH_SRCS),skvc-bench)) \
	$(if $(wildcard tools/skvc_demo.c),$(if $(SKVC_DEMO_SRCS),skvc-demo)) \
	$(if $(wildcard tools/skvc_kvdump.c),$(if $(SKVC_KVDUMP_SRCS),skvc-kvdump)))
PROGRAM_BINS := $(addprefix $(B)/bin/,$(PROGRAMS))
LIBS := $(if $(CLIENT_SRCS),$(B)/lib/libskvc.so $(B)/lib/libskvc.a) $(CUDA_LIBS)
MANS := $(patsubst %.scd,$(B)/man/%,$(notdir $(sort $(wildcard */man/*.scd))))

.PHONY: all programs libs mans tests demo cuda-skipped
all: programs libs mans
programs: $(PROGRAM_BINS)
cuda-skipped:
	@echo '  SKIP    libskvcd-cuda.so: $(CUDA_WHY_NOT)'
libs: $(if $(CUDA_WHY_NOT),cuda-skipped) $(LIBS) $(if $(CLIENT_SRCS),$(B)/lib/pkgconfig/skvc.pc)
mans: $(MANS)
tests: deps-check $(UNIT_BINS) $(E2E_BINS) $(MODEL_BINS) $(FUZZ_BINS) $(BENCH_BINS) \
	$(GPU_BINS)

# build/bin and build/lib name the default flavour.
ifeq ($(FLAVOUR),release)
all programs libs: $(BUILD)/bin $(BUILD)/lib
$(BUILD)/bin $(BUILD)/lib: | deps
	$(Q)mkdir -p $(BUILD)/release/$(@F) && ln -sfn release/$(@F) $@
$(addprefix $(BUILD)/bin/,$(PROGRAMS)): $(BUILD)/bin/%: $(B)/bin/% | $(BUILD)/bin
	@:
endif

# ---- compile ------------------------------------------------------------------------------------

PIC := -fPIE
$(IPC_OBJS) $(CLIENT_OBJS): PIC := -fPIC
$(IPC_OBJS): ROOM_CFLAGS := -Wconversion
$(call obj,$(GPU_AVX2_SRCS)): ROOM_CFLAGS := $(ISA_avx2) $(ISA_tune)
$(call obj,$(GPU_AVX512_SRCS)): ROOM_CFLAGS := $(ISA_avx512) $(ISA_tune)
# Tables and weights that have to come out alike on every machine: no product runs into a sum.
$(call obj,$(addprefix gpu/codec/model_,math.c matrix.c rescale.c)): ROOM_CFLAGS := -ffp-contract=off

# Changes when a flag changes: then everything of the flavour is built again.
$(B)/flags: FORCE | deps
	$(Q)mkdir -p $(@D); \
	printf '%s\n' '$(CC)' '$(subst ','\'',$(CPPFLAGS_ALL) $(CFLAGS_ALL) $(LDFLAGS_ALL))' \
		'$(ISA_avx2) $(ISA_avx512) $(ISA_tune)' >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# The same for the files that name folders.
$(B)/dirs: FORCE
	$(Q)mkdir -p $(@D); echo '$(prefix) $(bindir) $(sbindir) $(libdir) $(includedir) $(sysconfdir)' >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# So that `make install` with another prefix than that of `make` compiles no more than these.
DIRS_OBJS := $(call obj,daemon/lane_gpu.c daemon/main.c tools/skvcctl_doctor.c tools/skvcctl_facts.c)
$(DIRS_OBJS): $(B)/dirs
$(DIRS_OBJS): DIRS_CFLAGS = -DSYSCONFDIR='"$(sysconfdir)"' -DSKVCD_LIBDIR='"$(libdir)"'

$(B)/obj/%.o: %.c $(B)/flags
	$(call say,CC,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(PIC) $(ROOM_CFLAGS) $(DIRS_CFLAGS) -MMD -MP -c -o $@ $<

# Host code of the CUDA device is gcc's and plain C; nvcc sees kernels only.
CUDA_OBJS := $(call obj,$(CUDA_SRCS))
CUDA_KERNEL_OBJS := $(patsubst %.cu,$(B)/obj/%.o,$(sort $(CUDA_KERNEL_SRCS)))
$(CUDA_OBJS): PIC := -fPIC
$(CUDA_OBJS) $(call obj,$(CUDA_FAKE_SRCS)): ROOM_CFLAGS := -isystem $(CUDA_HOME)/include

$(B)/cuda-flags: FORCE
	$(Q)mkdir -p $(@D); \
	printf '%s\n' '$(NVCC)' '$(subst ','\'',$(NVCC_FLAGS))' >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Intermediate files of nvcc's own choice have its pid in their names, and these get into the object.
$(B)/obj/%.o: %.cu $(B)/cuda-flags
	$(call say,NVCC,$@)
	$(Q)rm -rf $(@:.o=.keep) && mkdir -p $(@:.o=.keep)
	$(Q)$(NVCC) $(NVCC_FLAGS) --keep --keep-dir $(@:.o=.keep) -MD -MP -MF $(@:.o=.d) -c -o $@ $<
	$(Q)rm -rf $(@:.o=.keep)

ALL_OBJS := $(IPC_OBJS) $(CLIENT_OBJS) $(GPU_OBJS) $(DAEMON_OBJS) $(TOOLS_OBJS) $(TESTLIB_OBJS) \
	$(CUDA_OBJS) $(CUDA_KERNEL_OBJS) $(call obj,$(CUDA_FAKE_SRCS)) \
	$(call obj,$(TEST_SRCS) $(FUZZ_REPLAY_SRCS))
-include $(ALL_OBJS:.o=.d)
.SECONDARY: $(ALL_OBJS)

# ---- archives: one per room, without the mains, so that a test links what it touches ------------

ROOM_LIBS := $(addprefix $(B)/lib/,ipc.a client.a gpu.a daemon.a tools.a testlib.a)
$(B)/lib/ipc.a: $(IPC_OBJS)
$(B)/lib/client.a: $(CLIENT_OBJS)
$(B)/lib/gpu.a: $(GPU_OBJS)
$(B)/lib/daemon.a: $(filter-out $(call obj,$(MAINS)),$(DAEMON_OBJS))
$(B)/lib/tools.a: $(filter-out $(call obj,$(MAINS)),$(TOOLS_OBJS))
$(B)/lib/testlib.a: $(TESTLIB_OBJS)
$(B)/lib/libskvc.a: $(CLIENT_OBJS) $(IPC_OBJS)
$(ROOM_LIBS) $(B)/lib/libskvc.a: $(B)/flags
	$(call say,AR,$@)
	$(Q)mkdir -p $(@D) && rm -f $@
	$(Q)$(AR) rcsD $@ $(filter %.o,$^)

# ---- libskvc ------------------------------------------------------------------------------------

SONAME := libskvc.so.$(SOVERSION)
$(B)/lib/libskvc.so.$(VERSION): $(CLIENT_OBJS) $(IPC_OBJS) client-lib/libskvc.map $(B)/flags
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -shared $(LDFLAGS_ALL) $(if $(SAN),,-Wl,-z,defs) -Wl,-soname,$(SONAME) \
		-Wl,--version-script=client-lib/libskvc.map -o $@ $(filter %.o,$^) -lpthread

$(B)/lib/libskvc.so: $(B)/lib/libskvc.so.$(VERSION)
	$(Q)ln -sf libskvc.so.$(VERSION) $(@D)/$(SONAME) && ln -sf $(SONAME) $@

$(B)/lib/pkgconfig/skvc.pc: client-lib/skvc.pc.in $(B)/dirs
	$(Q)mkdir -p $(@D)
	$(Q)sed -e 's|@prefix@|$(prefix)|g' -e 's|@libdir@|$(libdir)|g' \
		-e 's|@includedir@|$(includedir)|g' -e 's|@VERSION@|$(VERSION)|g' \
		-e 's|@version@|$(VERSION)|g' $< >$@

# ---- the CUDA device ----------------------------------------------------------------------------

# The runtime is linked in, the driver never: a machine without one must still start.  Only what the
# device uses comes along from gpu.a, and nothing but the one symbol is seen from outside.
$(CUDA_SO): $(CUDA_OBJS) $(CUDA_KERNEL_OBJS) $(B)/lib/gpu.a gpu/libskvcd-cuda.map $(B)/flags
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -shared $(LDFLAGS_ALL) -Wl,-z,defs -Wl,-soname,$(@F) \
		-Wl,--version-script=gpu/libskvcd-cuda.map -Wl,--exclude-libs,ALL -o $@ $(filter %.o,$^) \
		$(B)/lib/gpu.a $(CUDA_STATIC) $(call pkg,--libs libzstd libxxhash libsodium) \
		-lstdc++ -ldl -lrt -lpthread -lm

# ---- programs -----------------------------------------------------------------------------------

LINK = $(Q)mkdir -p $(@D) && $(CC) -pie $(LDFLAGS_ALL) -o $@ $(filter %.o,$^)
# Beside the programs, in the build tree and where they are installed.
RUNPATH := -Wl,--enable-new-dtags,-rpath,'$$ORIGIN/../lib'

$(B)/bin/skvcd: $(DAEMON_OBJS) $(B)/lib/gpu.a $(B)/lib/ipc.a
	$(call say,LD,$@)
	$(LINK) $(filter %.a,$^) $(DAEMON_LIBS)

$(B)/bin/skvcctl: $(call obj,$(SKVCCTL_SRCS))
# `replay` plays with the daemon's own table and policy, `nvme` with its log.
BENCH_DAEMON_SRCS := index policy policy_worth record stats uring uring_fault uring_ring \
	nvme_blob nvme_file nvme_gc nvme_health nvme_join nvme_keep nvme_log
$(B)/bin/skvc-bench: $(call obj,$(SKVC_BENCH_SRCS) $(BENCH_DAEMON_SRCS:%=daemon/%.c))
$(B)/bin/skvc-bench: BENCH_LIBS = $(call pkg,--libs liburing)
$(B)/bin/skvc-demo: $(call obj,$(SKVC_DEMO_SRCS))
$(B)/bin/skvc-kvdump: $(call obj,$(SKVC_KVDUMP_SRCS))
# The tools use the library as an outside engine would: the shared one, its public symbols only.
$(B)/bin/skvcctl $(B)/bin/skvc-bench $(B)/bin/skvc-demo $(B)/bin/skvc-kvdump: \
		$(B)/lib/gpu.a $(if $(CLIENT_SRCS),$(B)/lib/libskvc.so)
	$(call say,LD,$@)
	$(LINK) $(B)/lib/gpu.a $(if $(CLIENT_SRCS),-L$(B)/lib -lskvc $(RUNPATH)) $(TOOLS_LIBS) $(BENCH_LIBS)

$(B)/man/%: | deps
	$(call say,MAN,$@)
	$(Q)mkdir -p $(@D) && SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-0} scdoc <$< >$@
$(foreach s,$(wildcard */man/*.scd),$(eval $(B)/man/$(notdir $(s:.scd=)): $(s)))

# ---- tests --------------------------------------------------------------------------------------

# Unit tests reach into every room; an archive gives each what it names and nothing else.
UNIT_LIBS := $(addprefix $(B)/lib/,testlib.a tools.a daemon.a client.a gpu.a ipc.a)
$(UNIT_BINS) $(BENCH_BINS) $(GPU_BINS): $(B)/tests/%: $(B)/obj/tests/%.o $(UNIT_LIBS)
	$(call say,LD,$@)
	$(LINK) -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(TEST_LIBS) $(MORE_LIBS)

KERNEL_TEST_BINS := $(filter %/test_gpu_model %/test_gpu_model_code,$(GPU_BINS))
$(call obj,$(filter tests/gpu/test_gpu_model%,$(GPU_TEST_SRCS))): ROOM_CFLAGS := -isystem $(CUDA_HOME)/include
$(KERNEL_TEST_BINS): $(filter %/cuda_model.o %/cuda_model_code.o %/cuda_model_load.o,$(CUDA_KERNEL_OBJS))
$(KERNEL_TEST_BINS): MORE_LIBS = $(CUDA_STATIC) -lstdc++ -ldl -lrt
$(filter %/test_cuda_device %/test_cuda_predictor,$(UNIT_BINS)): $(CUDA_OBJS) $(call obj,$(CUDA_FAKE_SRCS))

# End-to-end tests are clients: the shared library, plus ipc.a for those that misbehave on purpose, and gpu.a
# for those that make profiles to ship.
$(E2E_BINS) $(MODEL_BINS): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/lib/testlib.a $(B)/lib/gpu.a \
		$(B)/lib/ipc.a $(B)/lib/libskvc.so
	$(call say,LD,$@)
	$(LINK) $(B)/lib/testlib.a $(B)/lib/gpu.a $(B)/lib/ipc.a -L$(B)/lib -lskvc \
		-Wl,--enable-new-dtags,-rpath,'$$ORIGIN/../../lib' $(TEST_LIBS)

# An engine's side of a GPU, for the one that has it.
$(filter %/test_model_blocks,$(E2E_BINS)): $(call obj,tools/bench_cuda.c)

ifeq ($(SAN),fuzz)
FUZZ_MAIN := -fsanitize=fuzzer
else
FUZZ_MAIN := $(call obj,$(FUZZ_REPLAY_SRCS))
endif
$(FUZZ_BINS): $(B)/tests/%: $(B)/obj/tests/%.o $(filter %.o,$(FUZZ_MAIN)) $(UNIT_LIBS)
	$(call say,LD,$@)
	$(LINK) $(filter -f%,$(FUZZ_MAIN)) -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(TEST_LIBS)

# The lists for tests/run: name, seconds, `any` or `alone`, command.  A slow flavour gets more time.
SLOW := $(if $(SAN),4,1)
TEST_ENV := env SKVC_BUILD=$(abspath $(B))
ifneq ($(SAN),)
TEST_ENV += ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 \
	TSAN_OPTIONS=second_deadlock_stack=1
endif
# With address space layout as random as newer kernels make it, clang 14's run-time does not start.
TSAN_WRAP := $(if $(filter tsan,$(SAN)),setarch -R)
list = $(if $(1),printf '%s\t%d\t%s\t%s\n' $(foreach t,$(1),'$(FLAVOUR)/$(t:$(B)/tests/%=%)' $$(($(2) * $(SLOW))) $(3) \
	'$(TEST_ENV) $(TSAN_WRAP) $(t)$(4)'),:)
# What a flavour has nothing to say about: TSan about code without threads (or with those alone that shorter tests have)
# and about I/O errors, both about times and installing.
SKIP_tsan := test_codec test_codec_hostile test_tokenizer test_safetensors test_config test_ctl_msg \
	test_doctor test_reload test_sqe_check test_index test_record test_limits test_nvme_faults test_steady test_demo \
	test_tools test_bench test_replay_data test_install test_staging test_cuda_device test_gpu_codec test_gpu_engine \
	test_gpu_layer test_residual test_product test_layer test_layer_hostile test_layer_size \
	test_codec_model_folder test_speculators \
	$(notdir $(FUZZ_BINS))
SKIP_asan := test_steady test_install test_speculators
run_here = $(foreach t,$(1),$(if $(filter $(SKIP_$(SAN)),$(notdir $(t))),,$(t)))
# Packages are made for test_service by test_deb, which comes first, and among the longest; these skip where they are not
# root or have no network.
SYSTEMD_SCRIPTS := $(sort $(filter-out %/test_deb,$(wildcard tests/systemd/test_*)))
E2E_SCRIPTS := $(sort $(filter-out %.c %.h,$(wildcard tests/e2e/test_*)))
# These skip where there is no GPU; what is a program runs over the simulated one as well.
GPU_SCRIPTS := $(sort $(filter-out %.c %.h %.py %.cu,$(wildcard tests/gpu/test_*)))
LINTS := $(sort $(wildcard tests/lint/*))

.PHONY: $(B)/tests.list $(BUILD)/lint.list check check-fast lint format fuzz torture
$(B)/tests.list: all tests
	$(Q){ echo '# $(FLAVOUR)'; \
	$(if $(filter release,$(FLAVOUR)),printf '%s\t900\tany\t%s\n' '$(FLAVOUR)/systemd/test_deb' '$(TEST_ENV) tests/systemd/test_deb';) \
	$(call list,$(call run_here,$(UNIT_BINS)),120,any); \
	$(foreach t,$(call run_here,$(FUZZ_BINS)),$(call list,$(t),120,any, tests/fuzz/corpus/$(patsubst fuzz_%,%,$(notdir $(t)))); )\
	$(if $(SAN),,printf '%s\t60\tany\t%s\n' '$(FLAVOUR)/abi' 'env CC=$(CC) tests/abi/check $(B)/lib/libskvc.so';) \
	$(call list,$(call run_here,$(E2E_BINS)),240,any); \
	$(foreach t,$(call run_here,$(E2E_SCRIPTS) $(GPU_SCRIPTS)),printf '%s\t240\talone\t%s\n' '$(FLAVOUR)/$(t:tests/%=%)' '$(TEST_ENV) $(t)'; )\
	$(call list,$(MODEL_BINS),240,any); \
	$(if $(SAN),,$(call list,$(GPU_BINS),300,alone);) \
	$(foreach t,$(call run_here,$(GPU_BINS)),printf '%s\t480\t%s\t%s\n' '$(FLAVOUR)/$(t:$(B)/tests/%=%)-sim' $(if $(filter %_engine,$(t)),alone,any) '$(TEST_ENV) SKVC_TEST_DEVICE=sim $(t)'; )\
	$(if $(filter release,$(FLAVOUR)),printf '%s\t900\talone\t%s\n' $(foreach t,$(SYSTEMD_SCRIPTS),'$(FLAVOUR)/$(t:tests/%=%)' '$(TEST_ENV) $(t)');) \
	} >$@

$(BUILD)/lint.list: | deps-check
	$(Q)mkdir -p $(BUILD); \
	printf '%s\t900\tany\t%s\n' $(foreach t,$(LINTS),'$(t:tests/%=%)' '$(t)') >$@

check: deps-check
	$(Q)$(MAKE) --no-print-directory WERROR=1 $(BUILD)/release/tests.list $(BUILD)/lint.list
	$(Q)$(MAKE) --no-print-directory WERROR=1 SAN=asan $(BUILD)/asan/tests.list
	$(Q)$(MAKE) --no-print-directory WERROR=1 SAN=tsan $(BUILD)/tsan/tests.list
	$(Q)tests/run -j $(JOBS) -d $(BUILD)/test-logs $(BUILD)/release/tests.list $(BUILD)/asan/tests.list \
		$(BUILD)/tsan/tests.list $(BUILD)/lint.list

check-fast: $(B)/tests.list
	$(Q)tests/run -j $(JOBS) -d $(B)/test-logs $<

lint: $(BUILD)/lint.list
	$(Q)tests/run -j 1 -d $(BUILD)/lint-logs $<

format: | deps-check
	$(Q)tests/lint/format --fix

FUZZ ?= $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRCS))
ifeq ($(SAN),fuzz)
fuzz: $(FUZZ_BINS)
	$(Q)for t in $(sort $(FUZZ)); do \
		mkdir -p $(B)/corpus/$$t && echo "== fuzz_$$t, $(FUZZ_SECONDS) s" && \
		$(B)/tests/fuzz/fuzz_$$t -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 \
			-print_final_stats=1 -verbosity=0 -artifact_prefix=$(B)/ $(B)/corpus/$$t tests/fuzz/corpus/$$t || exit 1; \
	done
else
fuzz: deps-check
	$(Q)$(MAKE) --no-print-directory SAN=fuzz fuzz
endif

torture: all tests
	$(Q)for t in $(MODEL_BINS) $(B)/tests/unit/test_nvme_recover $(B)/tests/unit/test_nvme_set; do \
		$(TEST_ENV) $$t --seconds $(TORTURE_SECONDS) || exit 1; done

# ---- the rest -----------------------------------------------------------------------------------

# KV= is measured, CALIBRATE= other tokens of the same model, MODEL= its folder; POINTS= of others.  TRACE= is replayed.
.PHONY: plots
plots: $(B)/bin/skvc-bench
	$(Q)test -n "$(TRACE)$(PROMETHEUS)" -o -n "$(KV)" -a -n "$(CALIBRATE)" || { \
		echo 'make plots KV=FILE CALIBRATE=FILE [MODEL=DIR] [DRAFT=DIR] [POINTS=FILE], TRACE=FILE, PROMETHEUS=URL'; exit 2; }
	$(Q)mkdir -p tools/plots
	$(if $(KV),$(Q)$(B)/bin/skvc-bench frontier --kv $(KV) --calibrate $(CALIBRATE) \
		$(if $(MODEL),--model $(MODEL)) $(if $(DRAFT),--draft $(DRAFT)) $(if $(POINTS),--points $(POINTS)) --svg tools/plots/frontier.svg)
	$(if $(TRACE),$(Q)$(B)/bin/skvc-bench replay --trace $(TRACE) --svg tools/plots/replay.svg)
	$(if $(PROMETHEUS),$(Q)tools/plots/dashboard.py --prometheus $(PROMETHEUS) --svg tools/plots/dashboard.svg)

demo: all
	$(Q)if [ -x tools/demo.sh ]; then exec tools/demo.sh; else exec $(B)/bin/skvc-demo tour; fi

# For scripts: the folder that this build goes to.
where:
	@echo '$(B)'

.PHONY: deps deps-check where asan tsan clean FORCE
deps:
	$(Q).ci/deps build
deps-check:
	$(Q).ci/deps build check

asan tsan:
	$(Q)$(MAKE) --no-print-directory SAN=$@ all tests

# What goes where: mode, file, target.  install and uninstall read the same list.
docdir ?= $(prefix)/share/doc/skvcd
completiondir ?= $(prefix)/share/bash-completion/completions
zshdir ?= $(prefix)/share/zsh/site-functions
man_target = $(mandir)/man$(patsubst .%,%,$(suffix $(1)))/$(notdir $(1))
INSTALL_LIST = $(foreach p,$(filter-out skvcd,$(PROGRAMS)),755:$(B)/bin/$(p):$(bindir)/$(p)) \
	755:$(B)/bin/skvcd:$(sbindir)/skvcd \
	755:$(B)/lib/libskvc.so.$(VERSION):$(libdir)/libskvc.so.$(VERSION) \
	644:$(B)/lib/libskvc.a:$(libdir)/libskvc.a \
	$(if $(CUDA_WHY_NOT),,755:$(CUDA_SO):$(libdir)/skvcd/$(notdir $(CUDA_SO))) \
	644:$(B)/lib/pkgconfig/skvc.pc:$(libdir)/pkgconfig/skvc.pc \
	644:client-lib/skvc.h:$(includedir)/skvc.h \
	644:$(B)/systemd/skvcd.service:$(unitdir)/skvcd.service \
	644:systemd/skvcd.slice:$(unitdir)/skvcd.slice \
	644:systemd/skvcd.socket:$(unitdir)/skvcd.socket \
	$(if $(CUDA_WHY_NOT),,644:systemd/skvcd-cuda.conf:$(unitdir)/skvcd.service.d/cuda.conf) \
	644:systemd/skvcd.sysusers:$(sysusersdir)/skvcd.conf \
	644:systemd/skvcd.tmpfiles:$(tmpfilesdir)/skvcd.conf \
	644:daemon/skvcd.catalog:$(catalogdir)/skvcd.catalog \
	644:systemd/org.skvcd.Skvcd1.conf:$(dbuspolicydir)/org.skvcd.Skvcd1.conf \
	644:systemd/skvcd.conf:$(docdir)/skvcd.conf.example \
	644:tools/skvcctl.bash:$(completiondir)/skvcctl \
	644:tools/skvcctl.zsh:$(zshdir)/_skvcctl \
	644:tools/grafana/skvcd.json:$(docdir)/grafana/skvcd.json \
	644:ipc/PROTOCOL.md:$(docdir)/PROTOCOL.md \
	644:README.md:$(docdir)/README.md \
	644:CHANGELOG.md:$(docdir)/CHANGELOG.md \
	$(foreach m,$(MANS),644:$(m):$(call man_target,$(m)))
LIB_LINKS = $(addprefix $(DESTDIR)$(libdir)/,$(SONAME) libskvc.so)

$(B)/systemd/%.service: systemd/%.service.in $(B)/dirs
	$(Q)mkdir -p $(@D) && sed -e 's|@sbindir@|$(sbindir)|g' -e 's|@bindir@|$(bindir)|g' \
		-e 's|@sysconfdir@|$(sysconfdir)|g' $< >$@

.PHONY: install uninstall
install: all $(B)/systemd/skvcd.service
	$(Q)for i in $(INSTALL_LIST); do \
		from=$${i#*:}; to='$(DESTDIR)'$${from#*:}; \
		install -D -m $${i%%:*} "$${from%%:*}" "$$to" || exit 1; \
	done
	$(Q)ln -sfn libskvc.so.$(VERSION) $(DESTDIR)$(libdir)/$(SONAME)
	$(Q)ln -sfn $(SONAME) $(DESTDIR)$(libdir)/libskvc.so
	$(Q)test -e $(DESTDIR)$(sysconfdir)/skvcd/skvcd.conf || \
		install -D -m 644 systemd/skvcd.conf $(DESTDIR)$(sysconfdir)/skvcd/skvcd.conf

# The configuration stays.
uninstall:
	$(Q)for i in $(INSTALL_LIST); do rm -f '$(DESTDIR)'"$${i##*:}"; done; rm -f $(LIB_LINKS)

.PHONY: deb
deb:
	$(Q)CUDA=$(CUDA) CUDA_HOME=$(CUDA_HOME) JOBS=$(JOBS) systemd/make-deb $(abspath $(BUILD)/deb)

clean:
	rm -rf $(BUILD)
FORCE:
