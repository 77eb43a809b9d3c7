"""Costs read from pieces of programs that libtpu 0.0.52 compiled for v5e, whose text differs from a CPU program's.

Names and layouts are as libtpu wrote them. Attributes that nothing reads are cut.
"""

from qwen35_jax.planning.hlo import Collective, array_shapes, read_costs

HEADER = 'HloModule jit_step, is_scheduled=true, num_partitions=8\n\nFileNames\n1 "/tmp/step.py"\n\n'

# A loop without a trip count, whose counter steps by 2. It is half of a product whose weight goes round a ring.
WINDOWED = """\
%body (wide.param: (bf16[1,8192,2048], bf16[1,256,16], u32[])) -> (bf16[1,8192,2048], bf16[1,256,16], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %wide.param = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %gte.0 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param), index=0
  %gte.1 = bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param), index=1
  %gte.2 = u32[]{:T(128)} get-tuple-element(%wide.param), index=2
  %permute = (bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%gte.1), channel_id=19, source_target_pairs={{0,7},{1,0}}
  %permute-done = bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)} collective-permute-done(%permute)
  %add.10687 = u32[]{:T(128)} add(%gte.2, %constant.2)
  ROOT %tuple.4450 = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) tuple(%gte.0, %permute-done, /*index=2*/%add.10687)
}

%condition (wide.param.860: (bf16[1,8192,2048], bf16[1,256,16], u32[])) -> pred[] {
  %constant.13775 = u32[]{:T(128)} constant(4)
  %wide.param.860 = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.21480 = u32[]{:T(128)} get-tuple-element(%wide.param.860), index=2
  ROOT %compare.542 = pred[]{:T(512)} compare(%get-tuple-element.21480, %constant.13775), direction=LT
}

ENTRY %main.335_spmd (p0: bf16[1,8192,2048], p1: bf16[1,256,16]) -> (bf16[1,8192,2048], bf16[1,256,16], u32[]) {
  %p0 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[1,256,16]{1,2,0:T(8,128)(2,1)} parameter(1)
  %constant.0 = u32[]{:T(128)} constant(0)
  %copy-start.59 = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p0), backend_config={"dma_priority":1}
  %copy-done.59 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.59)
  %tuple.4448 = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)}, u32[]{:T(128)}) tuple(%copy-done.59, %p1, %constant.0)
  ROOT %while.1469 = (bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,16]{1,2,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) while(%tuple.4448), condition=%condition, body=%body
}
"""  # noqa: E501

# An all-gather that starts in one fusion, goes on beside a product in another and ends in a third.
ASYNC = """\
%start (param_0: bf16[256,4096]) -> (bf16[256,4096], bf16[2048,4096], s32[2], u32[]) {
  %param_0 = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1285 = bf16[2048,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=615, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.792 = (bf16[256,4096]{1,0:T(8,128)(2,1)}, bf16[2048,4096]{1,0:T(8,128)(2,1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) custom-call(%all-gather.1285), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (param_0.1: bf16[256,4096], param_1.1: bf16[2048,4096], param_2.1: bf16[8192,2048], param_3.1: bf16[2048,512]) -> (bf16[8192,512], bf16[256,4096], bf16[2048,4096]) {
  %param_0.1 = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[2048,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %param_2.1 = bf16[8192,2048]{1,0:T(8,128)(2,1)} parameter(2)
  %param_3.1 = bf16[2048,512]{1,0:T(8,128)(2,1)} parameter(3)
  %convolution.705 = bf16[8192,512]{1,0:T(8,128)(2,1)} convolution(%param_2.1, %param_3.1), dim_labels=bf_io->bf
  %all-gather.1287 = bf16[2048,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=615, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %tuple.5220 = (bf16[8192,512]{1,0:T(8,128)(2,1)}, bf16[256,4096]{1,0:T(8,128)(2,1)}, bf16[2048,4096]{1,0:T(8,128)(2,1)}) tuple(%convolution.705, %param_0.1, %all-gather.1287)
}

%done (param_0.2: bf16[256,4096], param_1.2: bf16[2048,4096]) -> bf16[2048,4096] {
  %param_0.2 = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = bf16[2048,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.1289 = bf16[2048,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=615, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.794 = bf16[2048,4096]{1,0:T(8,128)(2,1)} custom-call(%param_0.2, %param_1.2, %all-gather.1289), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p0: bf16[256,4096], p1: bf16[8192,2048], p2: bf16[2048,512]) -> bf16[2048,4096] {
  %p0 = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[8192,2048]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = bf16[2048,512]{1,0:T(8,128)(2,1)} parameter(2)
  %async-collective-start = (bf16[256,4096]{1,0:T(8,128)(2,1)}, bf16[2048,4096]{1,0:T(8,128)(2,1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%p0), kind=kCustom, calls=%start
  %gte.0 = bf16[256,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=0
  %gte.1 = bf16[2048,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=1
  %fusion.1 = (bf16[8192,512]{1,0:T(8,128)(2,1)}, bf16[256,4096]{1,0:T(8,128)(2,1)}, bf16[2048,4096]{1,0:T(8,128)(2,1)}) fusion(%gte.0, %gte.1, %p1, %p2), kind=kOutput, calls=%async_collective_fusion, backend_config={"window_config":{"kernel_window_bounds":[],"estimated_cycles":"123456"}}
  %gte.2 = bf16[256,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.1), index=1
  %gte.3 = bf16[2048,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.1), index=2
  ROOT %async-collective-done = bf16[2048,4096]{1,0:T(8,128)(2,1)} fusion(%gte.2, %gte.3), kind=kCustom, calls=%done
}
"""  # noqa: E501

# A reduction of which each device keeps its part, and a Pallas kernel, whose attributes take several lines.
SCATTERED = """\
%all-reduce-scatter.1 (input.1: f32[8,8192,2048]) -> f32[16416,8,128] {
  %input.1 = f32[8,8192,2048]{2,1,0:T(8,128)} parameter(0)
  %bitcast.2189 = f32[131072,8,128]{2,1,0:T(8,128)} bitcast(%input.1)
  %constant.8795 = f32[]{:T(128)} constant(0)
  %pad.1136 = f32[131328,8,128]{2,1,0:T(8,128)} pad(%bitcast.2189, %constant.8795), padding=0_256x0_0x0_0
  %all-reduce.247 = f32[131328,8,128]{2,1,0:T(8,128)} all-reduce(%pad.1136), channel_id=613, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add.79.clone
  %partition-id.327 = u32[]{:T(128)} partition-id()
  %constant.8796 = u32[]{:T(128)} constant(16416)
  %multiply.1481 = u32[]{:T(128)} multiply(%partition-id.327, %constant.8796)
  %constant.8797 = u32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1459 = f32[16416,8,128]{2,1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.247, %multiply.1481, %constant.8797, %constant.8797), dynamic_slice_sizes={16416,8,128}
}

ENTRY %main (p0: f32[8,8192,2048], p1: bf16[8,8192,256]) -> bf16[8,8192,256] {
  %p0 = f32[8,8192,2048]{2,1,0:T(8,128)} parameter(0)
  %p1 = bf16[8,8192,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %fusion.36 = f32[16416,8,128]{2,1,0:T(8,128)S(1)} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.1
  %splash_mha_fwd_segmented_residuals.5 = (f32[512,128]{1,0:T(8,128)}, bf16[8,8192,256]{2,1,0:T(8,128)(2,1)}) custom-call(%p1), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[8,8192,256]{2,1,0}}, frontend_attributes={kernel_metadata={

"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/pallas_call" stack_frame_id=726}, backend_config={"flag_configs":[]}
  ROOT %get-tuple-element.26704 = bf16[8,8192,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mha_fwd_segmented_residuals.5), index=1, frontend_attributes={kernel_metadata={

"xprof_metadata":"{\\"block_q\\": 512}"
}}
}
"""  # noqa: E501


def program(*lines: str) -> str:
    return "\n".join([HEADER, "ENTRY %main () -> f32[] {", *(f"  {line}" for line in lines), "}"])


def test_a_loop_without_a_written_count_counts_by_its_condition_and_step():
    costs = read_costs(HEADER + WINDOWED)
    assert costs.unknown_loops == ()
    assert costs.collectives == [Collective("collective-permute", 2, 2 * 2 * 256 * 16)]
    # One asynchronous copy into the memory on the chip, where all else stays but the counter.
    assert costs.bytes == 2 * 8192 * 2048 + 2 * 3 * 4


def test_an_asynchronous_collective_counts_once():
    costs = read_costs(HEADER + ASYNC)
    assert costs.collectives == [Collective("all-gather", 1, 7 * 2 * 256 * 4096)]
    assert costs.cycles == 123456
    assert costs.flops == 2 * 8192 * 512 * 2048
    assert costs.without_cycles == {}
    collective = 2 * (256 + 2048) * 4096
    product = 2 * (8192 * 2048 + 2048 * 512 + 8192 * 512)
    assert costs.bytes == collective + product


def test_an_all_reduce_with_a_slice_counts_as_a_reduce_scatter():
    costs = read_costs(HEADER + SCATTERED)
    assert costs.collectives == [Collective("reduce-scatter", 1, 4 * 131328 * 8 * 128 * 7 / 8)]


def test_kernels_are_listed_by_name_and_their_arrays_by_shape():
    costs = read_costs(HEADER + SCATTERED)
    assert costs.without_cycles == {"splash_mha_fwd_segmented_residuals": 1}
    shapes = array_shapes(HEADER + SCATTERED)
    assert ("f32", (512, 128)) in shapes
    assert ("f32", (131328, 8, 128)) not in shapes, "inside a fusion"


def test_a_batched_product_written_as_a_dilated_convolution_counts_its_products_only():
    text = program(
        "%a = f32[16,64,128]{2,1,0:T(8,128)} parameter(0)",
        "%b = f32[16,128,128]{2,1,0:T(8,128)} parameter(1)",
        "ROOT %convolution-base-dilated.1004 = f32[16,64,128]{2,1,0:T(8,128)} convolution(%a, %b), "
        "window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf, operand_precision={highest,highest}",
    )
    assert read_costs(text).flops == 2 * 16 * 64 * 128 * 128


def test_the_group_size_is_read_from_every_notation_of_xla():
    for groups in ("{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "[2,4]<=[4,2]T(1,0)", "mesh['a'=2,'b'=4] {'b'}",
                   "mesh['x'=8] {'x':(2)4}"):  # fmt: skip
        text = program(
            "%a = f32[1024]{0:T(1024)} parameter(0)",
            f"ROOT %r = f32[1024]{{0:T(1024)}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add",
        )
        assert read_costs(text).collectives == [Collective("all-reduce", 1, 2 * 4096 * 3 / 4)], groups
    everyone = program("%a = f32[1024] parameter(0)", "ROOT %r = f32[1024] all-reduce(%a), to_apply=%add")
    assert read_costs(everyone).collectives == [Collective("all-reduce", 1, 2 * 4096 * 7 / 8)]
