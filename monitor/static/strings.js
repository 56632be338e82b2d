// All words of the page, per language.
const TEXT = {
  en: {
    curves: "Curves", samples: "Samples", runs: "Runs", gpu: "GPU", health: "Health", search_runs: "Filter runs",
    search_metrics: "Find a metric", smoothing: "Smoothing", axis: "x axis", step: "step", time: "time (h)",
    tokens: "tokens", main: "Overview", matches: "Search results", no_runs: "No runs here yet",
    no_runs_help: "Looking for verl logs under", no_runs_hint: "Start a training, or point --log_dir at a folder with verl output or at a console log. New runs appear by themselves.",
    nothing_selected: "Choose one or more runs on the left.", no_metrics: "The selected runs have no metrics yet.",
    no_axis_time: "this run's logs hold no times",
    no_axis_tokens: "this run's logs hold no token counts", running: "running", finished: "finished", failed: "failed",
    interrupted: "interrupted", stalled: "stalled", ended: "ended", state_samples: "samples", left: "% left", best: "best",
    at: "at step", loading: "reading logs …", log: "log", linear: "linear", png: "PNG", csv: "CSV",
    wide: "Wider", reset: "Reset zoom", pin: "Pin", unpin: "Unpin", rename: "Rename", colour: "Colour",
    select_all: "Show all", select_none: "None", newest: "Newest", differences: "Differences only",
    compare: "Settings compared", no_knobs: "No settings are recorded for the selected runs (run.json is missing).",
    setting: "setting", run: "run", method: "method", model: "model", state: "state", validation: "validation",
    written: "last written", attempts: "attempts", source: "source", total: "samples", of: "of",
    rollouts: "rollouts", validation_kind: "validation", results: "test results", score: "score",
    advantage: "advantage", chars: "characters", truncated: "cut off", truth: "expected",
    show_all: "Show all", history: "This prompt across steps", text: "text in prompt or answer",
    regex: "regex", any: "any outcome", wrong: "all wrong", right: "all right", mixed: "mixed", sort: "Sort",
    as_written: "as written", worst: "worst first", best_first: "best first", spread: "largest spread", longest: "longest first",
    no_samples: "This run has no samples.", no_samples_help: "Set trainer.rollout_data_dir and trainer.validation_data_dir (our launchers do) and the answers of each step appear here.",
    nothing_matches: "No sample matches these filters.", no_metric_matches: "No metric of the selected runs has this in its name.", clear: "Clear", group_mean: "mean", group_std: "std", prompt: "Prompt",
    no_gpu: "No GPU on this host", this_host: "This host, now", recorded: "Recorded during the run", no_record: "This run has no gpu.jsonl: its launcher did not record GPUs.",
    utilisation: "Utilisation", memory: "Memory", power: "Power", temperature: "Temperature", cpu: "CPU", ram: "RAM",
    all_well: "Nothing looks wrong", all_well_help: "rules were applied; none holds now.", try: "Try", show_curve: "Show the curve",
    show_samples: "Show samples", connection: "No connection to the panel; trying again …", deleted: "deleted",
    min_score: "score from", max_score: "to", min_length: "length from", theme: "Light or dark",
    not_finite: "not finite", copy: "Copy link", copied: "Copied",
    notes: "Not opened", more: "more", page: "Page", zoom_sync: "Zoom all",
    of_groups: "prompts", mean_reward: "mean reward", missing_scores: "without a score",
    second: "s", minute: "min", hour: "h", day: "d", fact_reward_mean: "reward mean", fact_reward_std: "reward std",
    fact_length_mean_chars: "mean length (characters)", fact_truncated_share: "share cut off", fact_reward_error_share: "share of reward errors",
    fact_within_group_std: "std within a prompt", fact_zero_advantage_share: "share of prompts without gradient", fact_duplicate_share: "share of duplicates",
  },
  zh: {
    curves: "曲线", samples: "样本", runs: "训练", gpu: "GPU", health: "健康", search_runs: "筛选训练", search_metrics: "查找指标",
    smoothing: "平滑", axis: "横轴", step: "步数", time: "时间(小时)", tokens: "token 数", main: "总览", matches: "查找结果",
    no_runs: "还没有训练记录", no_runs_help: "正在查找 verl 日志:", no_runs_hint: "启动训练,或用 --log_dir 指向含 verl 输出的目录或控制台日志。新的训练会自动出现。",
    nothing_selected: "请在左侧选择一个或多个训练。", no_metrics: "所选训练还没有指标。",
    no_axis_time: "此训练的日志没有时间信息", no_axis_tokens: "此训练的日志没有 token 数", running: "运行中", finished: "已完成", failed: "失败",
    interrupted: "已中断", stalled: "停滞", ended: "已结束", state_samples: "样本", left: "剩余 %", best: "最佳", at: "步",
    loading: "正在读取日志 …", log: "对数", linear: "线性", png: "PNG", csv: "CSV", wide: "加宽", reset: "重置缩放", pin: "置顶", unpin: "取消置顶",
    rename: "重命名", colour: "颜色", select_all: "全选", select_none: "清空", newest: "最新", differences: "只看差异", compare: "设置对比",
    no_knobs: "所选训练没有记录设置(缺少 run.json)。", setting: "设置", run: "训练", method: "方法", model: "模型", state: "状态", validation: "验证",
    written: "最近写入", attempts: "启动次数", source: "来源", total: "样本", of: "/", rollouts: "训练采样",
    validation_kind: "验证", results: "测试结果", score: "得分", advantage: "优势", chars: "字符", truncated: "被截断", truth: "期望答案",
    show_all: "显示全部", history: "此提示词随步数的变化", text: "提示词或回答中的文字", regex: "正则", any: "全部结果", wrong: "全错", right: "全对", mixed: "有对有错",
    sort: "排序", as_written: "原顺序", worst: "最差在前", best_first: "最好在前", spread: "分差最大", longest: "最长在前", no_samples: "此训练没有样本。",
    no_samples_help: "设置 trainer.rollout_data_dir 与 trainer.validation_data_dir(我们的启动脚本已设置)后,每步的回答会出现在这里。",
    nothing_matches: "没有符合条件的样本。", no_metric_matches: "所选训练没有名称匹配的指标。", clear: "清除", group_mean: "均值", group_std: "标准差", prompt: "提示词", no_gpu: "本机没有 GPU", this_host: "本机当前",
    recorded: "训练期间的记录", no_record: "此训练没有 gpu.jsonl:启动脚本没有记录 GPU。", utilisation: "利用率", memory: "显存", power: "功率", temperature: "温度", cpu: "CPU", ram: "内存",
    all_well: "未发现异常", all_well_help: "条规则已检查,目前均未触发。", try: "建议", show_curve: "查看曲线", show_samples: "查看样本", connection: "与面板的连接中断,正在重试 …",
    deleted: "已删除", min_score: "得分 从", max_score: "到", min_length: "长度 从", theme: "浅色或深色", not_finite: "非有限值",
    copy: "复制链接", copied: "已复制", notes: "未打开", more: "更多", page: "页", zoom_sync: "联动缩放",
    of_groups: "提示词", mean_reward: "平均奖励", missing_scores: "没有得分",
    second: "秒", minute: "分", hour: "小时", day: "天", fact_reward_mean: "平均奖励", fact_reward_std: "奖励标准差",
    fact_length_mean_chars: "平均长度(字符)", fact_truncated_share: "截断比例", fact_reward_error_share: "奖励出错比例",
    fact_within_group_std: "组内标准差", fact_zero_advantage_share: "无梯度提示词比例", fact_duplicate_share: "重复比例",
  },
};

let lang = "en";
export function setLanguage(value) {
  lang = TEXT[value] ? value : "en";
}
export function language() {
  return lang;
}
export function t(key) {
  return TEXT[lang][key] ?? TEXT.en[key] ?? key.replace(/^fact_/, "").replaceAll("_", " ");
}
