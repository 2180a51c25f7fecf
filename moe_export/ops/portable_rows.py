"""Bodies of ``ExpertDispatch``, ``GroupedMatMul`` and ``ExpertCombine`` in standard operators.

As lines of ONNX's text form; ``portable.py`` makes functions of them.
"""

from __future__ import annotations

from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul

_INT64, _INT32 = 7, 6


def dispatch_lines(attributes: ExpertDispatch) -> list[str]:
    """The body of ``ExpertDispatch``."""
    return [*_sort_lines(attributes), *_row_lines(attributes), *_end_lines(attributes)]


def _sort_lines(attributes: ExpertDispatch) -> list[str]:
    """Slots in order of (expert, slot), told in one number; those out of range are expert E's."""
    return [
        "zero = Constant <value_int = 0> ()",
        "one = Constant <value_int = 1> ()",
        f"num_experts = Constant <value_int = {attributes.num_experts}> ()",
        f"first_expert = Constant <value_int = {attributes.first_expert}> ()",
        "all_slots = Constant <value_ints = [-1]> ()",
        f"wide_ids = Cast <to = {_INT64}> (expert_ids)",
        "ids = Reshape(wide_ids, all_slots)",
        "local = Sub(ids, first_expert)",
        "is_low = Less(local, zero)",
        "is_high = GreaterOrEqual(local, num_experts)",
        "is_outside = Or(is_low, is_high)",
        "expert = Where(is_outside, num_experts, local)",
        "num_slots = Shape(expert)",
        "count = Squeeze(num_slots)",
        "slots = Range(zero, count, one)",
        "expert_start = Mul(expert, count)",
        "sort_key = Add(expert_start, slots)",
        "sorted_key, order = TopK <axis = 0, largest = 0> (sort_key, num_slots)",
        "sorted_expert = Gather <axis = 0> (expert, order)",
        "used = Less(sorted_expert, num_experts)",
    ]


def _row_lines(attributes: ExpertDispatch) -> list[str]:
    """``rows`` and ``row_experts``, and the way back, ``row_map``."""
    return [
        "top_k = Shape <start = 1, end = 2> (expert_ids)",
        "token = Div(order, top_k)",
        "gathered = Gather <axis = 0> (x, token)",
        "row_axis = Constant <value_ints = [1]> ()",
        "used_column = Unsqueeze(used, row_axis)",
        "nothing = Constant <value_float = 0.0> ()",
        "rows = Where(used_column, gathered, nothing)",
        f"last_expert = Constant <value_int = {attributes.num_experts - 1}> ()",
        "clamped_expert = Min(sorted_expert, last_expert)",
        f"row_experts = Cast <to = {_INT32}> (clamped_expert)",
        "minus_one = Constant <value_int = -1> ()",
        "row_or_none = Where(used, slots, minus_one)",
        "flat_map = ScatterElements <axis = 0> (slots, order, row_or_none)",
        "map_shape = Shape(expert_ids)",
        "wide_map = Reshape <allowzero = 1> (flat_map, map_shape)",
        f"row_map = Cast <to = {_INT32}> (wide_map)",
    ]


def _end_lines(attributes: ExpertDispatch) -> list[str]:
    """``group_ends``: slots per expert, summed up without those of expert E."""
    return [
        f"num_counts = Constant <value_ints = [{attributes.num_experts + 1}]> ()",
        "no_counts = ConstantOfShape <value = int64[1] {0}> (num_counts)",
        "each_one = ConstantOfShape <value = int64[1] {1}> (num_slots)",
        'counts = ScatterElements <axis = 0, reduction = "add"> (no_counts, expert, each_one)',
        "all_ends = CumSum(counts, zero)",
        "slice_begin = Constant <value_ints = [0]> ()",
        f"slice_end = Constant <value_ints = [{attributes.num_experts}]> ()",
        "wide_ends = Slice(all_ends, slice_begin, slice_end)",
        f"group_ends = Cast <to = {_INT32}> (wide_ends)",
    ]


def matmul_lines(attributes: GroupedMatMul) -> list[str]:
    """The body of ``GroupedMatMul``: one product per expert that has rows."""
    bias = attributes.has_bias
    product = "\n        ".join(
        [
            "begin_1 = Unsqueeze(begin, zero_1)",
            "end_1 = Unsqueeze(end, zero_1)",
            "group = Slice(rows, begin_1, end_1, zero_1)",
            "matrix = Gather <axis = 0> (weight, expert)",
            *(["bias_row = Gather <axis = 0> (bias, expert)"] if bias else []),
            f"out = Gemm <transB = 1> (group, matrix{', bias_row' if bias else ''})",
            "places = Range(begin, end, one)",
            "places_column = Unsqueeze(places, one_1)",
            "updated = ScatterND(y_in, places_column, out)",
        ]
    )
    return [
        "zero = Constant <value_int = 0> ()",
        "one = Constant <value_int = 1> ()",
        "zero_1 = Constant <value_ints = [0]> ()",
        "one_1 = Constant <value_ints = [1]> ()",
        f"ends = Cast <to = {_INT64}> (group_ends)",
        "begins = Concat <axis = 0> (zero_1, ends)",
        "num_rows = Shape <start = 0, end = 1> (rows)",
        f"width = Constant <value_ints = [{attributes.out_features}]> ()",
        "y_shape = Concat <axis = 0> (num_rows, width)",
        "nothing = ConstantOfShape <value = float[1] {0.0}> (y_shape)",
        f"num_experts = Constant <value_int = {attributes.num_experts}> ()",
        "always = Constant <value = bool {1}> ()",
        f"""y = Loop (num_experts, always, nothing) <body = each_expert
    (int64 expert, bool keep_on, float[M, N] y_in) => (bool go_on, float[M, N] y_out) {{
      go_on = Identity(keep_on)
      begin = Gather <axis = 0> (begins, expert)
      end = Gather <axis = 0> (ends, expert)
      used = Less(begin, end)
      y_out = If (used) <then_branch = run () => (float[M, N] updated) {{
        {product}
      }}, else_branch = skip () => (float[M, N] unchanged) {{
        unchanged = Identity(y_in)
      }}>
  }}>""",
    ]


def combine_lines(attributes: ExpertCombine) -> list[str]:
    """The body of ``ExpertCombine``: for each k, the tokens that have a k-th row."""
    return [
        "zero = Constant <value_int = 0> ()",
        "one_1 = Constant <value_ints = [1]> ()",
        "minus_one = Constant <value_int = -1> ()",
        f"given_map = Cast <to = {_INT64}> (row_map)",
        # Below -1, Gather would count from the end: past the end instead, where it refuses.
        "num_rows_1 = Shape <start = 0, end = 1> (rows)",
        "is_wrong = Less(given_map, minus_one)",
        "checked_map = Where(is_wrong, num_rows_1, given_map)",
        "num_tokens = Shape <start = 0, end = 1> (row_map)",
        f"width = Constant <value_ints = [{attributes.hidden_size}]> ()",
        "y_shape = Concat <axis = 0> (num_tokens, width)",
        "nothing = ConstantOfShape <value = float[1] {0.0}> (y_shape)",
        "top_k_1 = Shape <start = 1, end = 2> (row_map)",
        "top_k = Squeeze(top_k_1)",
        "always = Constant <value = bool {1}> ()",
        """y = Loop (top_k, always, nothing) <body = each_slot
    (int64 k, bool keep_on, float[T, N] sum_in) => (bool go_on, float[T, N] sum_out) {
      go_on = Identity(keep_on)
      row_or_none = Gather <axis = 1> (checked_map, k)
      is_used = Greater(row_or_none, minus_one)
      token_row = NonZero(is_used)
      num_places = Shape <start = 1, end = 2> (token_row)
      num_used = Squeeze(num_places)
      used = Greater(num_used, zero)
      sum_out = If (used) <then_branch = run () => (float[T, N] updated) {
        token_column = Transpose <perm = [1, 0]> (token_row)
        row = GatherND(row_or_none, token_column)
        all_weights = Gather <axis = 1> (expert_weights, k)
        weight_row = GatherND(all_weights, token_column)
        weight = Unsqueeze(weight_row, one_1)
        group = Gather <axis = 0> (rows, row)
        weighted = Mul(group, weight)
        updated = ScatterND <reduction = "add"> (sum_in, token_column, weighted)
      }, else_branch = skip () => (float[T, N] unchanged) {
        unchanged = Identity(sum_in)
      }>
  }>""",
    ]
