// 提交任务后轮询状态
async function submitAndPoll(modelName, prompt, imageUrl = null) {
// 1. 提交任务
const submitResponse = await fetch("http://localhost:8081/user/ai/tasks/submit", {
method: "POST",
headers: {
"Content-Type": "application/json",
"Authorization": `Bearer ${YOUR_JWT_TOKEN}`
},
body: JSON.stringify({
modelName,
prompt,
imageUrl
})
});
const submitResult = await submitResponse.json();
const taskNo = submitResult.data.taskNo;
console.log(`任务已提交: ${taskNo}`);
// 2. 轮询任务状态(每5秒查询一次)
const pollInterval = setInterval(async () => {
const statusResponse = await fetch(
`http://localhost:8081/user/ai/tasks/${taskNo}`,
{
headers: {
"Authorization": `Bearer ${YOUR_JWT_TOKEN}`
}
}
);
const statusResult = await statusResponse.json();
const status = statusResult.data.status;
const progress = statusResult.data.progress;
console.log(`任务状态: ${status}, 进度: ${progress}%`);
if (status === 'completed') {
clearInterval(pollInterval);
console.log(`任务完成!结果: ${statusResult.data.resultUrl}`);
return statusResult.data.resultUrl;
}
if (status === 'failed') {
clearInterval(pollInterval);
console.error(`任务失败: ${statusResult.data.errorMessage}`);
return null;
}
}, 5000);
}
// 使用示例
submitAndPoll("sc_soraimg_text_1x1", "一只可爱的柴犬");
