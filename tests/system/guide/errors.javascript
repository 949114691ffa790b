try {
const taskNo = await generator.generateImage("测试prompt", "1:1");
const imageUrl = await generator.waitForCompletion(taskNo);
console.log("成功:", imageUrl);
} catch (error) {
if (error.message.includes("积分不足")) {
console.error("请先充值积分");
// 跳转到充值页面
} else if (error.message.includes("未登录")) {
console.error("请先登录");
// 跳转到登录页面
} else {
console.error("生成失败:", error.message);
}
}
